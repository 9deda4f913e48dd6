"""A person with a program on matrix-nio, its encryption switched on. Prints one JSON object a line for each thing done.

nio_client.py first|again URL USER PASSWORD ROOM WORD DIR"""
import asyncio, json, os, sys

import nio

mode, url, user, password, room, word, where = sys.argv[1:]
session = os.path.join(where, "session.json")


def say(what, **rest):
    print(json.dumps({"did": what, **rest}), flush=True)


def ok(answer):
    if isinstance(answer, nio.ErrorResponse):
        raise SystemExit("%s: %s" % (type(answer).__name__, answer.message))
    return answer


async def bodies(client, seen, enough):
    """Syncs until enough texts were read."""
    while not enough(seen):
        answer = ok(await client.sync(timeout=5000))
        if room in answer.rooms.join:
            for event in answer.rooms.join[room].timeline.events:
                note(event, seen)


def note(event, seen):
    content = event.source.get("content", {})
    if event.source["type"].startswith("io.github.matrix-mls.") or event.source["type"] in ("m.room.encrypted", "m.room.encryption"):
        raise SystemExit("the client was told of " + event.source["type"])
    if content.get("io.github.matrix-mls.notice"):  # about the room, to its user alone
        return
    # A notice that is edited when its message can be read, as every client shows it.
    relates = content.get("m.relates_to", {})
    if event.event_id.startswith("$mls-proxy-"):
        seen[relates["event_id"]] = content["m.new_content"].get("body", "")
    elif "body" in content:
        seen[event.event_id] = content["body"]


def read(seen):
    return sum(body.startswith("message ") and body.endswith(word) for body in seen.values()) == 5


async def first(client):
    while room not in client.invited_rooms:
        ok(await client.sync(timeout=5000))
    ok(await client.join(room))
    say("joined")
    seen = {}
    await bodies(client, seen, read)
    of = next(i for i, body in seen.items() if body == "message 0 " + word)
    say("read", event_id=of)
    if client.rooms[room].encrypted:
        raise SystemExit("the client takes the room for one that it has to encrypt for")

    async def send(kind, what, content):
        say(what, event_id=ok(await client.room_send(room, kind, content)).event_id)

    text = {"msgtype": "m.text", "body": "text " + word}
    sent = ok(await client.room_send(room, "m.room.message", text)).event_id
    say("text", event_id=sent)
    await send("m.room.message", "reply", {"msgtype": "m.text", "body": "reply " + word, "m.relates_to": {"m.in_reply_to": {"event_id": of}}})
    await send("m.room.message", "edit", {"msgtype": "m.text", "body": "* edit " + word, "m.new_content": {"msgtype": "m.text", "body": "edit " + word},
                                          "m.relates_to": {"rel_type": "m.replace", "event_id": sent}})
    await send("m.reaction", "reaction", {"m.relates_to": {"rel_type": "m.annotation", "event_id": of, "key": "key " + word}})
    path = os.path.join(where, "file")
    with open(path, "rb") as f:
        up, _ = await client.upload(f, content_type="text/plain", filename=word + ".txt", filesize=os.path.getsize(path))
    await send("m.room.message", "file", {"msgtype": "m.file", "body": "file " + word, "url": ok(up).content_uri,
                                          "info": {"mimetype": "text/plain", "size": os.path.getsize(path)}})


async def again(client):
    seen = {}
    answer = ok(await client.sync(timeout=0, full_state=True))
    start = answer.rooms.join[room].timeline.prev_batch
    for event in answer.rooms.join[room].timeline.events:
        note(event, seen)
    while start and not (read(seen) and "text " + word in seen.values()):
        page = ok(await client.room_messages(room, start, limit=20))
        for event in page.chunk:
            note(event, seen)
        start = page.end if page.chunk else None
    say("history", texts=sorted(seen.values()))
    ok(await client.logout())
    say("left")


async def main():
    store = os.path.join(where, "store")
    os.makedirs(store, exist_ok=True)
    client = nio.AsyncClient(url, user, store_path=store, config=nio.AsyncClientConfig(encryption_enabled=True, max_timeouts=3))
    try:
        if mode == "first":
            made = ok(await client.login(password, device_name="nio"))
            with open(session, "w") as f:
                json.dump({"device": made.device_id, "token": made.access_token}, f)
            if client.olm is None:
                raise SystemExit("its encryption is not on")
            say("in")
            await first(client)
        else:
            with open(session) as f:
                kept = json.load(f)
            client.restore_login(user, kept["device"], kept["token"])
            await again(client)
    finally:
        await client.close()


asyncio.run(main())
