// A person at matrix-js-sdk with its encryption in Rust, whose session holds their cross-signing keys and compares emoji
// with another device of theirs. Prints one JSON object a line for each thing done, and reads what to say from its input.
//
// js_verify.mjs asks|asks-all|asked URL USER PASSWORD DIR
//
// It asks the device that its input names, as a person does who chose it from a list. With asks-all it asks for "another device"
// once it knows that one: the library then asks all devices, but where some are signed by their user it asks only those.
// Where DIR has a recovery-key the cross-signing keys are those that it opens; else the session makes them.
import { existsSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import * as sdk from "matrix-js-sdk";

Promise.withResolvers ??= function () {
    const out = {};
    out.promise = new this((resolve, reject) => Object.assign(out, { resolve, reject }));
    return out;
};
const rust = await import("./js_crypto.mjs");
const { CryptoEvent, VerificationPhase, VerificationRequestEvent, VerifierEvent } = await import("matrix-js-sdk/lib/crypto-api/index.js");
const [mode, url, user, password, where] = process.argv.slice(2);
const say = (did, rest = {}) => process.stdout.write(JSON.stringify({ did, ...rest }) + "\n");
const input = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

function fail(why) {
    process.stderr.write(String(why?.stack ?? why) + "\n");
    process.exit(1);
}
process.on("unhandledRejection", fail);

// until waits for something that becomes true as the request changes.
function until(request, test) {
    return new Promise((resolve, reject) => {
        const look = () => {
            if (request.phase === VerificationPhase.Cancelled) reject(new Error("the verification was cancelled: " + request.cancellationCode));
            const found = test();
            if (!found) return;
            request.off(VerificationRequestEvent.Change, look);
            resolve(found);
        };
        request.on(VerificationRequestEvent.Change, look);
        look();
    });
}

const kept = await sdk.createClient({ baseUrl: url }).loginRequest({ type: "m.login.password", identifier: { type: "m.id.user", user }, password });
const client = sdk.createClient({
    baseUrl: url, userId: kept.user_id, deviceId: kept.device_id, accessToken: kept.access_token, cryptoCallbacks: rust.secrets(where),
});
await client.initRustCrypto({ useIndexedDB: false });
const crypto = client.getCrypto();
await client.startClient({ initialSyncLimit: 1, disablePresence: true });
await new Promise((resolve) => {
    const look = () => client.isInitialSyncComplete() && resolve();
    client.on("sync", look);
    look();
});
const requested = new Promise((resolve) => client.once(CryptoEvent.VerificationRequestReceived, resolve));
const auth = { type: "m.login.password", identifier: { type: "m.id.user", user }, password };
const upload = async (make) => {
    try {
        await make(null);
    } catch (e) {
        if (e.httpStatus !== 401) throw e;
        await make({ ...auth, session: e.data.session });
    }
};
await crypto.userHasCrossSigningKeys(kept.user_id, true); // it asks for the public ones, which it may not have yet
await crypto.bootstrapCrossSigning(existsSync(join(where, "recovery-key")) ? {} : { authUploadDeviceSigningKeys: upload });
if (!(await crypto.isCrossSigningReady())) fail("the client does not have its person's cross-signing keys");
say("ready", { device: kept.device_id });

const asks = mode !== "asked";
let request;
if (asks) {
    // Who has just come is not asked before the client has heard of it.
    const whom = (await input.next()).value;
    const known = async () => (await crypto.getUserDeviceInfo([kept.user_id], true)).get(kept.user_id)?.has(whom);
    while (!(await known())) await new Promise((resolve) => ["sync", CryptoEvent.DevicesUpdated].forEach((name) => client.once(name, resolve)));
    request = await (mode === "asks" ? crypto.requestDeviceVerification(kept.user_id, whom) : crypto.requestOwnUserVerification());
} else request = await requested;
let verifier;
if (asks) {
    await until(request, () => request.phase === VerificationPhase.Ready);
    verifier = await request.startVerification("m.sas.v1");
} else {
    await request.accept();
    verifier = await until(request, () => request.verifier);
}
const shown = new Promise((resolve) => verifier.once(VerifierEvent.ShowSas, resolve));
const end = verifier.verify().then(() => "confirmed", (e) => e.message);
const { sas, confirm, mismatch } = await shown;
say("shown", { device: request.otherDeviceId, symbols: sas.emoji.map(([symbol]) => symbol), emoji: sas.emoji.map(([, name]) => name), decimals: sas.decimal });
if ((await input.next()).value === "same") await confirm();
else mismatch();
say("answered");
say("ended", { texts: [await end] });
if ((await input.next()).value === "trust") {
    // Its own signature it learns by /sync.
    say("keys", await rust.identity(client, false));
}
client.stopClient();
process.exit(0);
