#!/usr/bin/env python3
"""A second reader of epoch coordination, written from docs/epochs.md alone; the numbers in comments are its sections.

    reader.py FILE...     for each test vector one line of JSON: {"name": …, "outcome": …, "as_expected": …}

"outcome" has the shape of a vector's "expect". Standard library only (Python 3.10); it shares nothing with the Go implementation.
"""
import base64, hashlib, itertools, json, struct, sys
from types import SimpleNamespace as Obj
import ed25519
P = "io.github.matrix-mls."
ZERO, NAN = bytes(32), float("nan")                # NAN: what canonical JSON does not have
OK, WAIT, NOTHING = "ok", "wait", "nothing"        # what became of an event: it is in the set; it waits; it changes nothing
class Bad(ValueError): """A rule of section 4 is broken: the event is refused."""
# ---- 4, Everything: the form of JSON
def need(cond):
    if not cond: raise Bad()
def b64(v):
    need(isinstance(v, str))
    b = base64.b64decode(v + "=" * (-len(v) % 4), validate=True)
    return b if enc(b) == v else need(False)       # no padding, no spare bits
def enc(b): return base64.b64encode(b).decode().rstrip("=")
def num(o, k, lim=1 << 53):
    v = 0 if o.get(k) is None else o[k]
    return v if type(v) is int and 0 <= v < lim else need(False)
def ref(o, k, zero_ok=False):
    v = ZERO if o.get(k) is None else b64(o[k])
    return v if len(v) == 32 and (zero_ok or v != ZERO) else need(False)
def text(o, k):
    need(o.get(k) is None or isinstance(o[k], str))
    return o.get(k) or ""
def items(o, k, most=1 << 30):
    v = [] if o.get(k) is None else o[k]
    return v if isinstance(v, list) and len(v) <= most else need(False)
def obj(v): return v if isinstance(v, dict) else need(False)
def once(pairs): return dict(pairs) if len(dict(pairs)) == len(pairs) else NAN
def integer(s): return int(s) if s != "-0" and abs(int(s)) < 1 << 53 else NAN
def ballot(v):
    v = [0, 0] if v is None else v
    need(isinstance(v, list) and len(v) == 2 and all(type(x) is int and 0 <= x < 1 << 53 for x in v))
    return tuple(v) if v[1] < 16 and (v[0] > 0 or v[1] == 0) else need(False)
# ---- 3: signed bytes
def u32(n): return struct.pack(">I", n)
def u64(n): return struct.pack(">Q", n)
def blob(b): return u32(len(b)) + b
def bal(b): return u64(b[0]) + u32(b[1])
def vec(b):                                        # with the variable-length length of RFC 9420
    n = len(b)
    return (bytes([n]) if n < 64 else struct.pack(">H", n | 0x4000) if n < 16384 else u32(n | 0x80000000)) + b
def start(kind, room, gid): return blob(b"matrix-mls %s v1" % kind.encode()) + blob(room.encode()) + blob(gid)
def parse_statement(kind, c):
    s = Obj(kind=kind, ref=ref(c, "ref"), leaf=num(c, "leaf", 1 << 32), sig=b64(c.get("sig")))
    need(1 <= len(s.sig) <= 256)
    rule = text(c, "rule") if kind == "reject" else ""
    need(len(rule) <= 100 and all("!" <= x <= "~" for x in rule))
    s.tail = s.ref + u32(s.leaf) + (ref(c, "hash") if kind == "applied" else blob(rule.encode()))
    return s
def parse_proofs(o):                               # the statements among the proofs, and the bytes of all
    out, raw, ps = [], b"", items(o, "proofs", 128)
    for p in ps:
        a = obj(p).get("applied")
        need((a is None) != (p.get("commit") is None))
        if a is not None: out.append(parse_statement("applied", obj(a)))
        raw += b"\0" + ref(p, "commit") if a is None else b"\1" + out[-1].tail + blob(out[-1].sig)
    return out, u32(len(ps)) + raw
def parse_receipt(kind, c, room):
    r = Obj(kind=kind, cfg=ref(c, "cfg"), rank=num(c, "rank", 16), counter=num(c, "counter"), sig=b64(c.get("sig")), stmts=[])
    need(len(r.sig) == 64 and r.counter >= 1)
    prev = ref(c, "prev", True)
    need((prev == ZERO) == (r.counter == 1))
    hint = text(c, "commit_event") if kind in ("accept", "vote") else ""
    need(not hint or hint[0] == "$" and 2 <= len(hint.encode()) <= 255 and all("!" <= x != "\x7f" for x in hint))
    m = start(kind, room, b"") + r.cfg
    if kind == "ready": m += u32(r.rank)
    elif kind == "vote":
        r.ballot, r.ref = ballot(c.get("ballot")), ref(c, "ref")
        r.stmts, raw = parse_proofs(c)
        m += bal(r.ballot) + u32(r.rank) + r.ref + raw
    elif kind == "promise":
        r.ballot, last = ballot(c.get("ballot")), c.get("last")
        need(r.ballot[0] >= 1)
        m += bal(r.ballot) + u32(r.rank) + bytes([last is not None])
        r.last = None if last is None else Obj(ballot=ballot(obj(last).get("ballot")), ref=ref(last, "ref"), epoch=num(last, "epoch"))
        if last is not None:
            r.stmts, raw = parse_proofs(last)
            m += bal(r.last.ballot) + r.last.ref + u64(r.last.epoch) + raw
    else:
        prov = c.get("provisional")
        need(prov is None or isinstance(prov, bool))
        r.prov, r.ref, r.parent, r.epoch = bool(prov), ref(c, "ref"), ref(c, "parent", True), num(c, "epoch")
        r.ballot = (0, r.rank) if r.prov else ballot(c.get("ballot"))
        need((c.get("ballot") is None) == r.prov and r.ballot[1] == r.rank)
        r.promises = [parse_receipt("promise", obj(x), room) for x in items(c, "promises", 16)]
        r.votes = [parse_receipt("vote", obj(x), room) for x in items(c, "votes", 8)]
        need(not r.promises or not r.prov and r.ballot[0] >= 1)
        m += bal(r.ballot) + bytes([r.prov]) + r.ref + r.parent + u64(r.epoch)
        m += b"".join(u32(len(part)) + b"".join(x.hash for x in part) for part in (r.promises, r.votes))
    r.msg = m + u64(r.counter) + prev
    r.hash = hashlib.sha256(r.msg + r.sig).digest()
    return r
# ---- 2: facts of commits
def parse_policy(p):
    p = obj(p)
    seqs = [(text(s, "server"), text(s, "user"), b64(text(s, "receipt_key"))) for s in map(obj, items(p, "sequencers"))]
    need(len(seqs) <= 16 and all(a and u and len(k) == 32 for a, u, k in seqs))
    need(len({s[1] for s in seqs}) == len(seqs) == len({s[2] for s in seqs}))
    admins, heirs = list(items(p, "admins")), [(text(h, "user"), text(h, "server")) for h in items(p, "heirs")]
    times, window, freeze = (num(p, "takeover_ms"), num(p, "heirs_wait_ms")), num(p, "window"), text(p, "on_partition") == "freeze"
    return Obj(seqs=seqs, admins=admins, heirs=heirs, window=window or 16, freeze=freeze, but_seqs=(admins, heirs, times, window, freeze))
def parse_leaves(o, k):
    ls = [(num(obj(x), "leaf", 1 << 32), text(x, "user"), b64(x.get("key"))) for x in items(o, k)]
    need(all(user and key for _, user, key in ls))
    return ls
def parse_commit(c):
    x = Obj(kind="commit", ref=ref(c, "ref"), parent=ref(c, "parent"), epoch=num(c, "epoch"), author=num(c, "author", 1 << 32),
            user=text(c, "author_user"), external=bool(c.get("external")), only_removes=bool(c.get("only_removes")),
            removed=[num({"x": i}, "x", 1 << 32) for i in items(c, "removed")], updated=parse_leaves(c, "updated"),
            added=parse_leaves(c, "added"), era=None, founding=None, policy=None if c.get("policy") is None else parse_policy(c["policy"]))
    need(x.ref != x.parent and x.user)
    if c.get("era") is not None:
        e = obj(c["era"])
        x.era = Obj(number=num(e, "number"), heirs=bool(e.get("by_heirs")), signers=set(items(e, "signers")))
        need(x.policy is not None and x.policy.seqs)
    if c.get("founding") is not None:
        f = obj(c["founding"])
        x.founding = Obj(gid=b64(text(f, "group_id")), suite=num(f, "suite"), leaves=parse_leaves(f, "leaves"))
        need(x.founding.gid and x.founding.leaves and len({l for l, _, _ in x.founding.leaves}) == len(x.founding.leaves))
    return x
class Room:
    """A vector's base and events; outcome() is what section 5 makes of them."""
    def __init__(self, v):
        self.room, b = v["room"], v["base"]
        self.base, cfg = r, _ = b64(b["ref"]), b64(b["cfg"])
        self.above_root = bool(b.get("epoch") or b.get("era") or cfg != r)
        leaves = {l: (u, k, 0) for l, u, k in parse_leaves(b, "leaves")}
        pol = parse_policy(b["policy"])
        # cfg: the list that governs the commit; below: the list that governs its children
        self.tree = {r: Obj(ref=r, parent=None, depth=0, epoch=num(b, "epoch"), policy=pol, leaves=leaves, gid=b64(b["group_id"]),
                            suite=b["suite"], era=None, founding=None, sets=cfg == r, cfg=None, below=cfg, era_base=r,
                            era_number=num(b, "era"), user=None, kids=[])}
        # a list: its sequencers, its base, and the commit that has to be final before it is in force (None: always in force)
        self.lists = {cfg: Obj(seqs=pol.seqs, base=r, change=None)}
        self.founded, self.got = False, {"vote": {}, "promise": {}, "accept": {}, "ready": {}}
        self.said = {"applied": set(), "reject": set()}
        self.load(v["events"])
    # ---- 4: the set
    def load(self, events):
        self.refused, queue = [], []               # of pairs: an event's index, None if a receipt carried it; the event
        for i, e in enumerate(events):
            try:
                t, c = e["type"], obj(e["content"])
                json.dumps(c, allow_nan=False)
                if t == "commit": queue.append((i, parse_commit(c)))
                elif t in (P + "applied", P + "reject"): queue.append((i, parse_statement(t[len(P):], c)))
                elif t in (P + "accept", P + "vote", P + "promise", P + "ready"): queue.append((i, parse_receipt(t[len(P):], c, self.room)))
            except ValueError: self.refused.append(i)
        moved = True
        while moved:                               # what is too old stays so unless a founding commit came
            waits, old, moved = [], [], False
            for i, x in queue:                     # take() may append to it
                try:
                    how = self.take(x, queue) if not self.is_old(x) else old.append((i, x))
                    moved |= how == OK
                    waits += [(i, x)] * (how == WAIT)
                except Bad: self.refused.append(i)
            queue = waits + old
        self.refused = sorted(i for i in self.refused + [i for i, _ in old] if i is not None)
        late, self.beside = [x for _, x in waits if x.kind == "commit"] if self.above_root else [], set()       # 8
        while more := {x.ref for x in late if x.parent in self.beside or not (x.founding or self.founded)
                       and x.epoch == self.tree[self.base].epoch + 1} - self.beside:
            self.beside |= more
    def is_old(self, x):
        return x.kind == "commit" and not x.founding and not self.founded and x.ref != self.base and x.epoch <= self.tree[self.base].epoch
    def take(self, x, queue):
        if x.kind == "commit": return self.take_commit(x)
        if x.kind in ("applied", "reject"): return self.take_statement(x)
        if x.kind in ("accept", "vote") and x.ref == self.base: return NOTHING
        if x.kind in ("accept", "vote") and x.ref not in self.tree or x.cfg not in self.lists: return WAIT
        need(x.kind not in ("accept", "vote") or self.tree[x.ref].cfg == x.cfg)
        self.check_receipt(x, self.lists[x.cfg].seqs)
        queue += [(None, y) for y in (x.promises + x.votes if x.kind == "accept" else [])]
        queue += [(None, s) for s in x.stmts]
        self.got[x.kind].setdefault(x.cfg, {})[x.hash] = x
        return OK
    def take_statement(self, x):
        if x.ref not in self.tree or x.ref == self.base and x.kind == "reject":
            return NOTHING if x.ref in self.tree else WAIT
        t = self.tree[x.ref] if x.kind == "applied" else self.tree[self.tree[x.ref].parent]
        need(x.leaf in t.leaves and t.suite in (1, 3))   # the suites with Ed25519; no vector has another
        msg = vec(b"MLS 1.0 " + (P + "statement").encode()) + vec(start(x.kind, self.room, t.gid) + x.tail)
        need(ed25519.verify(t.leaves[x.leaf][1], msg, x.sig))
        self.said[x.kind].add((x.ref, x.leaf))
        return OK
    def check_receipt(self, x, seqs):
        need(x.rank < len(seqs) and ed25519.verify(seqs[x.rank][2], x.msg, x.sig))
        need(x.kind == "ready" or x.ballot[1] < len(seqs))
        need(x.kind != "promise" or x.last is None or x.last.ballot < x.ballot)
        if x.kind == "accept":
            need(x.parent == self.tree[x.ref].parent and x.epoch == self.tree[x.ref].epoch)
            for y in x.promises + x.votes:
                need(y.cfg == x.cfg and (y.ballot == x.ballot if y.kind == "promise" else y.rank == x.rank))
                self.check_receipt(y, seqs)
    def take_commit(self, x):
        if x.ref in self.tree or x.parent not in self.tree:
            need(x.ref == self.base or x.ref not in self.tree or self.tree[x.ref].parent == x.parent)
            return NOTHING if x.ref in self.tree else WAIT
        p = self.tree[x.parent]
        x.depth, x.kids = p.depth + 1, []
        if x.founding:
            x.gid, x.suite = x.founding.gid, x.founding.suite
            x.leaves = {l: (u, k, x.depth) for l, u, k in x.founding.leaves}
        else:
            need(x.epoch == p.epoch + 1 and (x.external or x.author in p.leaves and p.leaves[x.author][0] == x.user))
            x.gid, x.suite, x.leaves = p.gid, p.suite, dict(p.leaves)
            for l in x.removed: need(x.leaves.pop(l, None))
            for l, u, k in x.updated:
                need(l in x.leaves and x.leaves[l][0] == u)
                x.leaves[l] = (u, k, x.leaves[l][2])
            for l, u, k in x.added:
                need(l not in x.leaves)
                x.leaves[l] = (u, k, x.depth)
            need(x.leaves and (not x.external or any(l == x.author and u == x.user for l, u, _ in x.added)))
        if x.era:
            need(x.era.number == p.era_number + 1 and (not x.era.heirs or x.policy.but_seqs == p.policy.but_seqs))
        x.sets, x.policy = bool(x.era) or x.policy is not None and x.policy.seqs != p.policy.seqs, x.policy or p.policy
        x.cfg, x.below = None if x.era else p.below, x.ref if x.sets else p.below
        x.era_base, x.era_number = (x.ref, x.era.number) if x.era else (p.era_base, p.era_number)
        if x.sets: self.lists[x.ref] = Obj(seqs=x.policy.seqs, base=x.ref, change=None if x.era else x.ref)
        self.tree[x.ref], self.founded = x, self.founded or bool(x.founding)
        p.kids.append(x)
        return OK
    # ---- 5: the outcome
    def chain(self, r):                            # r and what lies below it, downwards
        while r is not None:
            yield self.tree[r]
            r = self.tree[r].parent
    def under(self, r):                            # r and what lies below it while the same list governs
        cfg = self.tree[r].cfg
        return itertools.takewhile(lambda c: c.cfg == cfg and cfg is not None, self.chain(r))
    def extends(self, a, b): return any(c.ref == b for c in self.chain(a))
    def off(self, a, b): return not self.extends(a, b) and not self.extends(b, a)
    def vouching(self):                            # 5.1
        for c in self.tree.values():
            c.alone = c.founding or not any(u != c.user and s < c.depth for u, _, s in c.leaves.values())
            c.vouched = c.ref == self.base
        stand = self.said["applied"] | {(c.parent, c.author) for c in self.tree.values() if c.parent and not c.external and not c.founding}
        for d, leaf in stand:
            user, _, since = self.tree[d].leaves[leaf]
            for c in self.chain(d): c.vouched = c.vouched or c.alone or since < c.depth and user != c.user
        doubted = {r for r, _ in self.said["reject"]}
        for c in sorted(self.tree.values(), key=lambda c: c.depth):
            c.votable = bool(c.vouched and (c.ref == self.base or c.era or self.tree[c.parent].votable))
            c.doubt = c.ref in doubted and not c.vouched
    def finals(self, cfg, q):                      # 5.2
        tally = {}
        for v in self.got["vote"].get(cfg, {}).values():
            if self.tree[v.ref].votable:
                for c in self.under(v.ref): tally.setdefault((v.ballot, c.ref), set()).add(v.rank)
        self.final |= {r for (_, r), who in tally.items() if len(who) >= q}
    def bound(self, a, q, valid, base, top):       # 5.3: what the accept's ballot had to extend; None: too few promises count
        counted, best = set(), []
        for p in a.promises:
            if p.rank in counted: continue
            if p.last is not None:
                n, lb, held = p.last.ref, p.last.ballot, p.last.ref in self.tree
                above = held and n != top and self.extends(n, top)
                if above and not self.tree[n].votable: continue
                if above and not any(o.ballot == lb and self.extends(o.ref, n) and self.extends(n, o.start) for o in valid): continue
                if not (held or self.above_root and (p.last.epoch <= self.tree[self.base].epoch or n in self.beside)): continue
                n = n if above else base
                best.append((-lb[0], -lb[1], -self.tree[n].depth, n))
            counted.add(p.rank)
        return None if len(counted) < q or len(a.promises) > q else min(best)[3] if best else base
    def accepting(self, cfg, lst, q):              # 5.3, 5.4
        valid, accepts = [], list(self.got["accept"].get(cfg, {}).values())
        top = min((-c.depth, c.ref) for c in self.tree.values() if c.cfg == cfg and c.ref in self.final or c.ref == lst.base)[1]
        for a in sorted((a for a in accepts if not a.prov), key=lambda a: a.ballot):
            a.start = lst.base if a.ballot == (0, 0) else self.bound(a, q, valid, lst.base, top)
            if a.start is not None and self.extends(a.ref, a.start):
                valid.append(a)
        for a in valid + [a for a in accepts if a.prov and not self.tree[a.ref].sets]:
            off = not a.prov and any(o.ballot == a.ballot and self.off(o.ref, a.ref)
                                     and self.extends(o.ref, top) >= self.extends(a.ref, top) for o in valid)
            for c in self.under(a.ref):
                if off or a.prov and c.ref != a.ref: c.indirect = True
                elif a.prov: c.own = a.rank if c.own is None else min(c.own, a.rank)
                else: c.ballot = max(c.ballot or a.ballot, a.ballot)
    def accepted(self, c): return c.ballot is not None or c.own is not None or c.indirect or c.below_final
    def newest(self, era_base):                    # 5.5
        return min((c for r, c in self.tree.items() if c.era_base == era_base and (r in self.final or r == era_base)),
                   key=lambda c: (-c.depth, c.ref))
    def counts(self, e, counting):                 # 5.6
        left = self.tree[e.parent].era_base
        if left not in counting or not (self.accepted(self.tree[e.parent]) or e.parent == left) or not e.vouched: return False
        new = self.newest(left)
        if not e.era.heirs: return e.user in self.tree[e.parent].policy.admins and e.user in new.policy.admins
        there = {u for u, _, _ in new.leaves.values()}
        heirs = [(u, s) for u, s in new.policy.heirs if u in there]
        have = {s for u, s in heirs if u == e.user or u in e.era.signers}
        return any(u == e.user for u, _ in heirs) and 2 * len(have) > len({s for _, s in heirs})
    def outcome(self):
        tree = self.tree
        self.vouching()
        self.final = {self.base}
        for c in tree.values(): c.ballot, c.own, c.indirect, c.below_final = None, None, False, False
        for cfg, lst in sorted(self.lists.items(), key=lambda kv: (tree[kv[1].base].depth, kv[1].base)):
            if lst.change is None or lst.change in self.final:
                self.finals(cfg, len(lst.seqs) // 2 + 1)
                self.accepting(cfg, lst, len(lst.seqs) // 2 + 1)
        for r in self.final:
            for c in self.chain(r): c.below_final = c.below_final or c.era_base == tree[r].era_base
        counting = {self.base}
        for e in sorted((c for c in tree.values() if c.era), key=lambda c: (c.depth, c.ref)):
            if self.counts(e, counting): counting.add(e.ref), self.final.add(e.ref)  # final, but no mark of 5.4
        def rank_era(r):
            e = tree[r]
            anc = next((c.depth for c in self.chain(e.parent) if c.ref in self.final), -1) if e.parent else -1
            return (-e.era_number, bool(e.era and e.era.heirs), -anc, r)
        era = tree[min(counting, key=rank_era)]
        new = head = self.newest(era.ref)
        def order(c):                              # 5.7
            b = c.ballot or (-1, 0)
            return bool(c.sets and c.ref not in self.final), -b[0], -b[1], 99 if c.ballot or c.own is None else c.own, c.ref
        while kids := [c for c in head.kids if self.accepted(c) and not c.era]: head = min(kids, key=order)
        chain = list(self.chain(head.ref))[::-1]
        on = {c.ref for c in chain}
        doubt = [c for c in chain if c.depth > era.depth and c.doubt]
        safe, usable, n = tree[doubt[0].parent] if doubt else head, new, 0      # 5.8
        for c in chain[new.depth + 1:]:
            pol, final = tree[c.parent].policy, c.ref in self.final
            one = c.votable and not final and not c.only_removes
            if not final and (c.sets and not c.era or pol.freeze) or one and n + 1 > pol.window: break
            n, usable = n + one, c
        out = {"head": enc(head.ref), "safe_head": enc(safe.ref), "usable_head": enc(usable.ref), "final": enc(new.ref),
               "era": era.era_number, "era_base": enc(era.ref), "commits": {}}
        for c in tree.values():                    # 5.9
            if c.ref != self.base:
                acc, o = bool(self.accepted(c) or c.era and c.ref in on), {}
                o["status"] = ("final" if c.ref in on and c.ref in self.final else "in doubt" if c.doubt else "waiting" if not acc
                               else "displaced" if c.ref not in on else "side branch" if c.ballot is None and not c.below_final
                               else "votable" if c.votable else "accepted")
                flags = {"accepted": acc, "votable": c.votable, "in_doubt": c.doubt, "final": c.ref in self.final}
                out["commits"][enc(c.ref)] = {**o, **{k: True for k, f in flags.items() if f}}
        more = {"refused": self.refused, "evidence": sorted(self.evidence())}
        return {**out, **{k: v for k, v in more.items() if v}}
    def evidence(self):                            # 5.10
        found = set()
        def same(x, y): return x.ballot == y.ballot and self.off(x.ref, y.ref)
        def pairs(kind, xs, ys, test):
            found.update("%s %s %d" % (kind, enc(x.cfg), x.rank) for x in xs for y in ys if x.rank == y.rank and test(x, y))
        for cfg in self.lists:
            acc, votes, proms = (list(self.got[k].get(cfg, {}).values()) for k in ("accept", "vote", "promise"))
            acc = [a for a in acc if not a.prov]
            pairs("accepts-off-one-chain", acc, acc, same)
            pairs("votes-off-one-chain", votes, votes, same)
            pairs("vote-off-own-accepts", votes, acc, same)
            pairs("two-promises-for-one-ballot", proms, proms, lambda x, y: x.ballot == y.ballot and x.hash != y.hash)
            pairs("vote-understated-in-promise", proms, votes, lambda p, v: v.ballot < p.ballot and (
                p.last is None or p.last.ballot < v.ballot or
                p.last.ballot == v.ballot and p.last.ref in self.tree and not self.extends(p.last.ref, v.ref)))
        return found
if __name__ == "__main__":
    for name in sys.argv[1:]:
        with open(name, encoding="utf-8") as f:
            v = json.load(f, object_pairs_hook=once, parse_int=integer, parse_float=lambda _: NAN)
        o = Room(v).outcome()
        print(json.dumps({"name": v["name"], "outcome": o, "as_expected": o == v.get("expect")}, separators=(",", ":")))
