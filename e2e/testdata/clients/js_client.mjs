// A person with a program on matrix-js-sdk: without its encryption ("plain"), with it ("rust"), or with the option for
// those whose encryption is a proxy ("external"). Prints one JSON object a line for each thing done.
//
// js_client.mjs plain|rust|external first|again URL USER PASSWORD ROOM WORD DIR
//
// Without a USER, the PASSWORD is the token that a browser brought back from single sign-on.
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import * as sdk from "matrix-js-sdk";

// The library asks for Node 22; this is all that it lacks in Node 20.
Promise.withResolvers ??= function () {
    const out = {};
    out.promise = new this((resolve, reject) => Object.assign(out, { resolve, reject }));
    return out;
};
const [kind, mode, url, user, password, room, word, where] = process.argv.slice(2);
const session = join(where, "session.json");
const say = (did, rest = {}) => process.stdout.write(JSON.stringify({ did, ...rest }) + "\n");

function fail(why) {
    process.stderr.write(String(why?.stack ?? why) + "\n");
    process.exit(1);
}
process.on("unhandledRejection", fail);

// until waits for something that becomes true with an event of the client's.
function until(client, names, test) {
    return new Promise((resolve) => {
        const look = () => {
            const found = test();
            if (found) {
                names.forEach((n) => client.off(n, look));
                resolve(found);
            }
        };
        names.forEach((n) => client.on(n, look));
        look();
    });
}

function texts(client) {
    const out = new Map();
    for (const event of client.getRoom(room)?.getLiveTimeline().getEvents() ?? []) {
        const type = event.getType();
        if (type.startsWith("io.github.matrix-mls.") || type === "m.room.encrypted" || type === "m.room.encryption") fail("the client was told of " + type);
        const body = event.getContent().body;
        if (typeof body === "string") out.set(event.getId(), body);
    }
    return out;
}

function readAll(client) {
    const all = texts(client);
    return [0, 1, 2, 3, 4].every((i) => [...all.values()].includes(`message ${i} ${word}`)) && all;
}

// unencrypted checks that the client would send in clear in the room: it leaves that to the proxy.
async function unencrypted(client) {
    const here = client.getRoom(room);
    if (here.hasEncryptionStateEvent() || (await client.getCrypto()?.isEncryptionEnabledInRoom(room)))
        fail("the client takes the room for one that it has to encrypt for: " + JSON.stringify(here.currentState.getStateEvents("m.room.encryption", "")?.event));
}

async function first(client) {
    await until(client, ["Room", "Room.myMembership"], () => client.getRoom(room)?.getMyMembership() === "invite");
    await client.joinRoom(room);
    say("joined");
    const all = await until(client, ["Room", "Room.timeline", "Event.replaced"], () => readAll(client));
    const of = [...all].find(([, body]) => body === "message 0 " + word)[0];
    say("read", { event_id: of });
    await unencrypted(client);
    if (crypto) {
        const apart = await rust.aside(client, where, until);
        writeFileSync(session, JSON.stringify({ ...kept, apart }));
        say("keys", await rust.identity(client, true));
    }
    const send = async (did, type, content) => {
        const { event_id } = await client.sendEvent(room, type, content);
        say(did, { event_id });
        return event_id;
    };
    const sent = await send("text", "m.room.message", { msgtype: "m.text", body: "text " + word });
    await send("reply", "m.room.message", { "msgtype": "m.text", "body": "reply " + word, "m.relates_to": { "m.in_reply_to": { event_id: of } } });
    await send("edit", "m.room.message", {
        "msgtype": "m.text", "body": "* edit " + word, "m.new_content": { msgtype: "m.text", body: "edit " + word },
        "m.relates_to": { rel_type: "m.replace", event_id: sent },
    });
    await send("reaction", "m.reaction", { "m.relates_to": { rel_type: "m.annotation", event_id: of, key: "key " + word } });
    const data = readFileSync(join(where, "file"));
    const up = await client.uploadContent(new Blob([data]), { type: "text/plain", name: word + ".txt" });
    await send("file", "m.room.message", { msgtype: "m.file", body: "file " + word, url: up.content_uri, info: { mimetype: "text/plain", size: data.length } });
}

async function again(client) {
    // Synapse answers a first /sync that is like the one before with what it said then: that it was invited.
    await until(client, ["sync"], () => client.isInitialSyncComplete() && client.getRoom(room)?.getMyMembership() === "join");
    const here = client.getRoom(room);
    const whole = () => readAll(client) && ["reply " + word, "edit " + word].every((own) => [...texts(client).values()].some((body) => body.endsWith(own)));
    while (!whole()) {
        if (here.getLiveTimeline().getPaginationToken("b")) await client.scrollback(here, 20);
        else await new Promise((resolve) => client.once("sync", resolve)); // the rest comes by later answers
    }
    await unencrypted(client);
    if (crypto) {
        await rust.aside(client, where, until, kept.apart);
        say("keys", await rust.identity(client, false));
    }
    say("history", { texts: [...texts(client).values()].sort() });
    client.stopClient();
    await client.logout();
    say("left");
}

const how = user ? { type: "m.login.password", identifier: { type: "m.id.user", user }, password } : { type: "m.login.token", token: password };
const kept = mode === "first" ? await sdk.createClient({ baseUrl: url }).loginRequest(how) : JSON.parse(readFileSync(session));
if (mode === "first") {
    writeFileSync(session, JSON.stringify(kept));
    say("in");
}
const rust = kind === "rust" && (await import("./js_crypto.mjs"));
const client = sdk.createClient({
    baseUrl: url, userId: kept.user_id, deviceId: kept.device_id, accessToken: kept.access_token,
    usingExternalCrypto: kind === "external", cryptoCallbacks: rust ? rust.secrets(where) : {},
});
const crypto = rust && (await rust.start(client, where));
await client.startClient({ initialSyncLimit: 20, disablePresence: true });
await (mode === "first" ? first(client) : again(client));
client.stopClient();
if (crypto && mode === "first") await crypto.keep();
process.exit(0);
