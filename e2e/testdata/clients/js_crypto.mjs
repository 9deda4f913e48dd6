// matrix-js-sdk's encryption in Rust as a browser uses it: its keys are in IndexedDB, which is kept in a file from one
// run to the next, and the person's recovery key opens their cross-signing keys.
import "fake-indexeddb/auto";
import { createCipheriv, createDecipheriv, createHash, randomBytes } from "node:crypto";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { deserialize, serialize } from "node:v8";
import * as sdk from "matrix-js-sdk";
import { decodeRecoveryKey } from "matrix-js-sdk/lib/crypto-api/recovery-key.js";

const done = (request) => new Promise((resolve, reject) => {
    request.onsuccess = request.oncomplete = () => resolve(request.result);
    request.onerror = request.onabort = () => reject(request.error);
});

// keep writes all databases into a file.
export async function keep(path) {
    const all = [];
    for (const { name, version } of await indexedDB.databases()) {
        const db = await done(indexedDB.open(name));
        const stores = [];
        for (const store of db.objectStoreNames) {
            const from = db.transaction(store).objectStore(store);
            const [keys, values] = await Promise.all([done(from.getAllKeys()), done(from.getAll())]);
            const indexes = [...from.indexNames].map((i) => from.index(i)).map(({ name, keyPath, unique, multiEntry }) => ({ name, keyPath, unique, multiEntry }));
            stores.push({ store, keyPath: from.keyPath, autoIncrement: from.autoIncrement, indexes, keys, values });
        }
        all.push({ name, version, stores });
        db.close();
    }
    if (!all.some(({ stores }) => stores.some(({ keys }) => keys.length))) throw new Error("the client's encryption stored nothing");
    writeFileSync(path, serialize(all));
}

// restore makes the databases from a file.
async function restore(path) {
    for (const { name, version, stores } of deserialize(readFileSync(path))) {
        const opening = indexedDB.open(name, version);
        opening.onupgradeneeded = () => {
            for (const { store, keyPath, autoIncrement, indexes, keys, values } of stores) {
                const to = opening.result.createObjectStore(store, { keyPath, autoIncrement });
                indexes.forEach((i) => to.createIndex(i.name, i.keyPath, { unique: i.unique, multiEntry: i.multiEntry }));
                keys.forEach((key, i) => to.put(values[i], keyPath === null ? key : undefined));
            }
        };
        (await done(opening)).close();
    }
}

// secrets answers the library's question for the recovery key.
export function secrets(where) {
    return {
        getSecretStorageKey: async ({ keys }) => [Object.keys(keys)[0], decodeRecoveryKey(readFileSync(join(where, "recovery-key"), "utf8").trim())],
    };
}

// start switches the encryption on, with what a run before left.
export async function start(client, where) {
    const path = join(where, "indexeddb");
    if (existsSync(path)) await restore(path);
    await client.initRustCrypto();
    return { keep: () => keep(path) };
}

// identity signs the client's device, and says what the client knows of itself. That it is signed it learns by /sync.
export async function identity(client, sign) {
    const crypto = client.getCrypto();
    if (sign) await crypto.bootstrapCrossSigning({});
    if (!(await crypto.isCrossSigningReady())) throw new Error("the client does not have its person's cross-signing keys");
    const own = client.getUserId();
    const trust = {};
    for (const until = Date.now() + 60_000; ; ) {
        const devices = (await crypto.getUserDeviceInfo([own], true)).get(own);
        for (const device of devices.keys()) trust[device] = (await crypto.getDeviceVerificationStatus(own, device)).crossSigningVerified;
        if (!Object.values(trust).includes(false) || Date.now() > until) break;
        await new Promise((resolve) => ["sync", "crypto.devicesUpdated"].forEach((name) => client.once(name, resolve)));
    }
    const keys = await crypto.getOwnDeviceKeys();
    return { device: client.getDeviceId(), ed25519: keys.ed25519, curve25519: keys.curve25519, trust };
}

const base64 = (bytes) => bytes.toString("base64").replace(/=+$/, "");

// file encrypts a file, uploads it as clients do with what they have encrypted, and sends its key in a room with Megolm.
async function file(client, room, name) {
    const key = randomBytes(32);
    const iv = Buffer.concat([randomBytes(8), Buffer.alloc(8)]);
    const cipher = createCipheriv("aes-256-ctr", key, iv);
    const bytes = Buffer.concat([cipher.update(name.repeat(500)), cipher.final()]);
    const { content_uri: url } = await client.uploadContent(new Blob([bytes]), { type: "application/octet-stream", includeFilename: false });
    const jwk = { kty: "oct", alg: "A256CTR", ext: true, key_ops: ["encrypt", "decrypt"], k: key.toString("base64url") };
    const hashes = { sha256: base64(createHash("sha256").update(bytes).digest()) };
    await client.sendEvent(room, "m.room.message", { msgtype: "m.file", body: name, file: { v: "v2", url, key: jwk, iv: base64(iv), hashes } });
}

// opens gets such a file from the other one's homeserver, with the key of the message alone.
async function opens(homeserver, who, message, word) {
    const { url, key, iv, hashes } = message.getContent().file;
    const answer = await fetch(`${homeserver}/_matrix/client/v1/media/download/${url.slice("mxc://".length)}`, { headers: { Authorization: "Bearer " + who.getAccessToken() } });
    const bytes = Buffer.from(await answer.arrayBuffer());
    if (!answer.ok || base64(createHash("sha256").update(bytes).digest()) !== hashes.sha256) throw new Error("the file of a message with Megolm is not the one that was encrypted: " + answer.status);
    const open = createDecipheriv("aes-256-ctr", Buffer.from(key.k, "base64url"), Buffer.from(iv, "base64"));
    const text = Buffer.concat([open.update(bytes), open.final()]).toString();
    if (!text.startsWith(word)) throw new Error("the file says " + text.slice(0, 100));
}

// aside has the client talk with somebody who is not behind the proxy, in a room with Megolm: room keys go by to-device
// messages, both ways. With a room it only reads there again.
export async function aside(client, where, until, room) {
    const words = JSON.parse(readFileSync(join(where, "aside.json")));
    const reads = (who, word) => until(who, ["Room", "Room.timeline", "Event.decrypted"], () =>
        who.getRoom(room)?.getLiveTimeline().getEvents().find((e) => e.isEncrypted() && e.getContent().body === word));
    if (room) {
        await reads(client, words.there);
        return room;
    }
    const login = { type: "m.login.password", identifier: { type: "m.id.user", user: words.user }, password: words.password };
    const theirs = await sdk.createClient({ baseUrl: words.url }).loginRequest(login);
    const other = sdk.createClient({ baseUrl: words.url, userId: theirs.user_id, deviceId: theirs.device_id, accessToken: theirs.access_token });
    await other.initRustCrypto({ useIndexedDB: false });
    await other.startClient({ initialSyncLimit: 20, disablePresence: true });
    const encryption = { type: "m.room.encryption", state_key: "", content: { algorithm: "m.megolm.v1.aes-sha2" } };
    room = (await other.createRoom({ preset: "private_chat", initial_state: [encryption], invite: [client.getUserId()] })).room_id;
    await until(client, ["Room", "Room.myMembership"], () => client.getRoom(room)?.getMyMembership() === "invite");
    await client.joinRoom(room);
    const both = (who) => until(who, ["Room", "RoomState.members", "RoomState.events"], () => who.getRoom(room)?.hasEncryptionStateEvent() && who.getRoom(room).getJoinedMembers().length === 2);
    await Promise.all([both(client), both(other)]);
    if (!(await client.getCrypto().isEncryptionEnabledInRoom(room))) throw new Error("the client does not encrypt in a room with Megolm");
    await other.sendEvent(room, "m.room.message", { msgtype: "m.text", body: words.there });
    await reads(client, words.there);
    await client.sendEvent(room, "m.room.message", { msgtype: "m.text", body: words.back });
    await reads(other, words.back);
    await file(client, room, words.back + " as a file");
    await opens(words.url, other, await reads(other, words.back + " as a file"), words.back);
    other.stopClient();
    return room;
}
