// A person with Hydrogen in a browser. It is the whole program, its encryption with it; what a person would click is done
// on the models behind its views. Tells the server that it came from what it has done.
"use strict";
const say = (did, rest = {}) => fetch("/say", { method: "POST", body: JSON.stringify({ did, ...rest }) });
const fail = (why) => fetch("/fail", { method: "POST", body: String(why?.stack ?? why) });
addEventListener("error", (e) => fail(e.error ?? e.message));
// Such as of a receipt that the logout breaks off, which nobody waits for: shown if something fails. What is waited for fails in main.
addEventListener("unhandledrejection", (e) => fetch("/complain", { method: "POST", body: String(e.reason?.stack ?? e.reason) }).catch(() => {}));

// The library comes as modules for Node.
const loaded = {};
function load(path) {
    if (loaded[path]) return loaded[path].exports;
    const get = new XMLHttpRequest();
    get.open("GET", "/node_modules/" + path, false);
    get.send();
    if (get.status !== 200) throw new Error(path + ": " + get.status);
    const module = (loaded[path] = { exports: {} });
    const entries = { "another-json": "another-json/another-json.js", "base64-arraybuffer": "base64-arraybuffer/lib/base64-arraybuffer.js", "dompurify": "dompurify/dist/purify.cjs.js", "off-color": "off-color/umd/index.min.js" };
    new Function("module", "exports", "require", get.responseText)(module, module.exports, (name) => load(entries[name] ?? name));
    return module.exports;
}

// until waits for something that becomes true.
async function until(what, test) {
    for (const end = Date.now() + 180_000; ; ) {
        const found = test();
        if (found) return found;
        if (Date.now() > end) throw new Error("it waits for " + what + (window.seen ? " and has seen " + JSON.stringify(window.seen()) : ""));
        await new Promise((resolve) => setTimeout(resolve, 50));
    }
}

async function main() {
    const { mode, url, user, password, room, word } = await (await fetch("/person")).json();
    const hydrogen = load("hydrogen-view-sdk/lib-build/hydrogen.cjs.js");
    const kept = localStorage.getItem("hydrogen_sessions_v1");
    if ((mode === "again") !== !!kept) throw new Error("the browser kept the session " + kept);
    if (kept) localStorage.setItem("hydrogen_sessions_v1", JSON.stringify(JSON.parse(kept).map((s) => ({ ...s, homeServer: url, homeserver: url }))));

    const modules = "/node_modules/";
    const assetPaths = {
        downloadSandbox: modules + "hydrogen-view-sdk/asset-build/assets/download-sandbox.html", worker: modules + "hydrogen-view-sdk/asset-build/assets/main.js",
        olm: { wasm: modules + "@matrix-org/olm/olm.wasm", legacyBundle: modules + "@matrix-org/olm/olm_legacy.js", wasmBundle: modules + "@matrix-org/olm/olm.js" },
        serviceWorker: "/sw.js",
    };
    const platform = new hydrogen.Platform({ container: document.body, assetPaths, config: { defaultHomeServer: url }, options: {} });
    const navigation = hydrogen.createNavigation();
    platform.setNavigation(navigation);
    await platform.init();
    const urlRouter = hydrogen.createRouter({ navigation, history: platform.history });
    urlRouter.attach();
    const features = await hydrogen.FeatureSet.load(platform.settingsStorage);
    const root = new hydrogen.RootViewModel({ platform, urlRouter, navigation, features });
    await root.load();
    platform.createAndMountRootView(root);

    let form;
    if (mode === "first") {
        form = await until("the form to log in", () => root.loginViewModel?.passwordLoginViewModel);
        form.login(user, password);
    }
    const started = await until("the session", () => {
        const loading = root.loginViewModel?.loadViewModel ?? root.sessionLoadViewModel;
        const error = root.error ?? loading?._error ?? loading?._client?.loadError ?? (form?.errorMessage && new Error(form.errorMessage));
        if (error) throw error;
        return root.sessionViewModel;
    });
    const { session } = started._client;
    if (!session._olm) throw new Error("its encryption is not on");
    if (mode === "first") {
        await say("in");
        const invite = await until("the invite", () => session.invites.get(room));
        if (invite.isEncrypted) throw new Error("the client takes the room for one that it has to encrypt for");
        await invite.accept();
        await say("joined");
    }
    const here = await until("the room", () => session.rooms.get(room));
    navigation.applyPath(navigation.path.with(navigation.segment("room", room)));
    const timeline = await here.openTimeline();
    const bodies = (window.seen = () => {
        const out = new Map();
        for (const entry of timeline.entries) {
            const content = entry.content ?? {};
            if (entry.eventType?.startsWith("io.github.matrix-mls.") || entry.eventType === "m.room.encrypted" || entry.eventType === "m.room.encryption") throw new Error("the client was told of " + entry.eventType);
            if (content["m.new_content"]) out.set(content["m.relates_to"].event_id, content["m.new_content"].body);
            else if (content.body) out.set(entry.id, content.body);
        }
        return [...out];
    });
    const read = () => [0, 1, 2, 3, 4].every((i) => bodies().some(([, body]) => body === `message ${i} ${word}`));
    const unencrypted = () => {
        if (here.isEncrypted) throw new Error("the client takes the room for one that it has to encrypt for");
    };
    if (mode === "again") {
        for (let top = false; !read() && !top; ) top = await timeline.loadAtTop(20);
        await until("five messages", read);
        unencrypted();
        await say("history", { texts: bodies().map(([, body]) => body).sort() });
        await say("picture");
        navigation.push("logout", started.id);
        (await until("the question before the logout", () => root.logoutViewModel)).logout();
        await until("the end of the session", () => localStorage.getItem("hydrogen_sessions_v1") === "[]");
        await say("left");
        return;
    }
    await until("five messages", read);
    unencrypted();
    const [of] = bodies().find(([, body]) => body === "message 0 " + word);
    await say("read", { event_id: of });

    const sent = [];
    here._sendQueue.pendingEvents.subscribe({ onAdd: (_, event) => sent.push(event), onUpdate() {}, onRemove() {}, onMove() {}, onReset() {} });
    const send = async (did, type, content, attachments) => {
        const before = sent.length;
        await here.sendEvent(type, content, attachments);
        const event = await until(did + " to be sent", () => {
            if (sent[before]?.error) throw sent[before].error;
            return sent[before]?.remoteId;
        });
        await say(did, { event_id: event });
        return event;
    };
    const entry = [...timeline.entries].find((e) => e.id === of);
    const text = await send("text", "m.room.message", { msgtype: "m.text", body: "text " + word });
    await send("reply", "m.room.message", entry.createReplyContent("m.text", "reply " + word));
    await send("edit", "m.room.message", {
        "msgtype": "m.text", "body": "* edit " + word, "m.new_content": { msgtype: "m.text", body: "edit " + word },
        "m.relates_to": { rel_type: "m.replace", event_id: text },
    });
    await send("reaction", "m.reaction", entry.annotate("key " + word));
    const blob = hydrogen.BlobHandle.fromBlobUnsafe(await (await fetch("/file")).blob());
    await send("file", "m.room.message", { msgtype: "m.file", body: word + ".txt" }, { url: here.createAttachment(blob, word + ".txt") });
    await until("its own words to come back", () => ["reply " + word, word + ".txt"].every((own) => bodies().some(([, body]) => body.includes(own))));
    await say("picture");
    await say("done");
}
main().catch(fail);
