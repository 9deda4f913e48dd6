// A person with Hydrogen in a headless Chromium, whose profile is kept from one run to the next. Serves the page, and
// prints one JSON object a line for each thing done there. With MLS_SCREENSHOTS set to a folder, pictures are left in it.
//
// hydrogen_client.mjs first|again URL USER PASSWORD ROOM WORD DIR
import { spawn } from "node:child_process";
import { createWriteStream, existsSync, readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { extname, join, normalize } from "node:path";

const [mode, url, user, password, room, word, where] = process.argv.slice(2);
const types = { ".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".wasm": "application/wasm", ".svg": "image/svg+xml", ".json": "application/json" };
let browser;

function fail(why) {
    process.stderr.write(String(why?.stack ?? why) + "\n");
    browser?.process.kill("SIGKILL");
    process.exit(1);
}
process.on("unhandledRejection", fail);

// start runs the browser, and speaks its own protocol with it by two pipes.
function start(address) {
    const log = createWriteStream(join(where, "chromium-" + mode));
    const child = spawn("chromium", [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-extensions", "--disable-component-update",
        "--disable-background-networking", "--window-size=1100,900", "--user-data-dir=" + join(where, "profile"), "--remote-debugging-pipe",
        // The same origin in both runs, whatever the port.
        "--host-resolver-rules=MAP localhost:80 " + address, "http://localhost/",
    ], { stdio: ["ignore", "pipe", "pipe", "pipe", "pipe"] });
    child.on("error", fail);
    child.stdout.pipe(log);
    child.stderr.pipe(log);
    const [to, from] = [child.stdio[3], child.stdio[4]];
    const waiting = new Map();
    let buffer = Buffer.alloc(0);
    from.on("data", (data) => {
        buffer = Buffer.concat([buffer, data]);
        for (let end; (end = buffer.indexOf(0)) >= 0; buffer = buffer.subarray(end + 1)) {
            const { id, result, error } = JSON.parse(buffer.subarray(0, end));
            waiting.get(id)?.(error ? Promise.reject(new Error(JSON.stringify(error))) : result);
            waiting.delete(id);
        }
    });
    to.on("error", () => {});
    let ids = 0;
    const call = (method, params = {}, sessionId) => new Promise((resolve) => {
        waiting.set(++ids, resolve);
        to.write(JSON.stringify({ id: ids, method, params, sessionId }) + "\0");
    });
    return { process: child, call, ended: new Promise((resolve) => child.on("exit", resolve)) };
}

async function picture() {
    const folder = process.env.MLS_SCREENSHOTS;
    if (!folder) return;
    const { targetInfos } = await browser.call("Target.getTargets");
    const page = targetInfos.find((t) => t.type === "page");
    const { sessionId } = await browser.call("Target.attachToTarget", { targetId: page.targetId, flatten: true });
    const { data } = await browser.call("Page.captureScreenshot", { format: "png" }, sessionId);
    writeFileSync(join(folder, `hydrogen-${mode}.png`), Buffer.from(data, "base64"));
}

const server = createServer(async (request, response) => {
    let body = "";
    for await (const part of request) body += part;
    const path = decodeURIComponent(new URL(request.url, "http://localhost").pathname);
    const known = { "/": "hydrogen.html", "/index.html": "hydrogen.html", "/hydrogen_page.js": "hydrogen_page.js", "/file": "file", "/sw.js": "node_modules/hydrogen-view-sdk/lib-build/sw.js" };
    const file = known[path] ?? (path.startsWith("/node_modules/") && normalize(path.slice(1)));
    if (path === "/person") response.end(JSON.stringify({ mode, url, user, password, room, word }));
    else if (path === "/fail") {
        response.end();
        fail("the page: " + body);
    } else if (path === "/complain") {
        response.end();
        process.stderr.write("the page: " + body + "\n");
    } else if (path === "/say") {
        const { did } = JSON.parse(body);
        if (did === "picture") await picture();
        else if (did !== "done") process.stdout.write(body + "\n");
        response.end();
        if (did === "done" || did === "left") {
            void browser.call("Browser.close");
            await browser.ended;
            process.exit(0);
        }
    } else if (file && existsSync(join(where, file))) {
        response.setHeader("Content-Type", types[extname(file)] ?? "text/plain");
        response.end(readFileSync(join(where, file)));
    } else {
        response.statusCode = 404;
        response.end();
    }
});
setTimeout(() => fail("the browser is not done after five minutes"), 300_000).unref();
server.listen(0, "127.0.0.1", () => {
    browser = start("127.0.0.1:" + server.address().port);
    browser.process.on("exit", (code) => setTimeout(() => fail("the browser ended, exit code " + code + "\n" + readFileSync(join(where, "chromium-" + mode), "utf8").slice(-2000)), 1000));
});
