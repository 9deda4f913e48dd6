#!/usr/bin/env python3
"""A second reader of epoch coordination, written from docs/epochs.md; the numbers in comments are its sections.

    reader.py FILE...     for each test vector one line of JSON: {"name": …, "outcome": …, "as_expected": …}

Standard library only; it shares nothing with the Go implementation.
"""
import base64, functools, hashlib, json, re, sys

ZERO, PREFIX = bytes(32), "io.github.matrix-mls."

# Ed25519 (RFC 8032), verification only.
P, L = 2**255 - 19, 2**252 + 27742317777372353535851937790883648493  # the field, the group's order
D, I = -121665 * pow(121666, -1, P) % P, pow(2, (P - 1) // 4, P)

def point(b):
    """Decodes a point into extended coordinates; None if it is none."""
    y = int.from_bytes(b, "little")
    sign, y = y >> 255, (y & (1 << 255) - 1) % P
    x2 = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(x2, (P + 3) // 8, P)
    x = x * I % P if (x * x - x2) % P else x
    x = x if x & 1 == sign else P - x
    return (x, y, 1, x * y % P) if (x * x - x2) % P == 0 and x < P else None

def add(p, q):
    a, b = (p[1] - p[0]) * (q[1] - q[0]) % P, (p[1] + p[0]) * (q[1] + q[0]) % P
    c, d = 2 * p[3] * q[3] * D % P, 2 * p[2] * q[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P

BASE = point((4 * pow(5, -1, P) % P).to_bytes(32, "little"))

@functools.cache
def ed25519(key, content, sig):
    a, s = point(key), int.from_bytes(sig[32:], "little")
    if a is None or s >= L or len(key) != 32 or len(sig) != 64:
        return False
    k = int.from_bytes(hashlib.sha512(sig[:32] + key + content).digest(), "little") % L
    minus = P - a[0], a[1], 1, P - a[3]
    table, r = (None, BASE, minus, add(BASE, minus)), (0, 1, 1, 0)
    for i in range(253, -1, -1):  # s·B − k·A, both at once
        r = add(r, r)
        if t := (s >> i & 1) + 2 * (k >> i & 1):
            r = add(r, table[t])
    z = pow(r[2], -1, P)
    return (r[1] * z % P | (r[0] * z % P & 1) << 255).to_bytes(32, "little") == sig[:32]

class Refused(Exception): """The event is in nobody's set."""
class Waits(Exception): """The event names a commit that is not held."""
def b64(b): return base64.b64encode(b).decode().rstrip("=")

def need(ok):
    if not ok:
        raise Refused

def unb64(s):
    need(isinstance(s, str) and re.fullmatch("[A-Za-z0-9+/]*", s) and len(s) % 4 != 1)
    b = base64.b64decode(s + "=" * (-len(s) % 4))
    need(b64(b) == s)
    return b

def ref_of(c, k, optional=False):
    b = ZERO if optional and k not in c else unb64(c.get(k))
    need(len(b) == 32 and (optional or b != ZERO))
    return b

def number(c, k, limit=2**53):
    need(type(c.get(k, 0)) is int and 0 <= c.get(k, 0) < limit)
    return c.get(k, 0)

def ballot_of(c):
    v = c.get("ballot", [0, 0])
    need(isinstance(v, list) and len(v) == 2 and all(type(x) is int and x >= 0 for x in v) and v[1] < 16 and (v[0] > 0 or v[1] == 0))
    return tuple(v)

# 3: signed bytes
def u8(v): return v.to_bytes(1, "big")
def u32(v): return v.to_bytes(4, "big")
def u64(v): return v.to_bytes(8, "big")
def vec(b): return u32(len(b)) + b
def ballot_bytes(b): return u64(b[0]) + u32(b[1])
def start(kind, room, group=b""): return vec(f"matrix-mls {kind} v1".encode()) + vec(room.encode()) + vec(group)

def with_label(content):
    out = b""
    for v in (f"MLS 1.0 {PREFIX}statement".encode(), content):
        n = len(v)
        out += (u8(n) if n < 64 else (n | 0x4000).to_bytes(2, "big") if n < 16384 else u32(n | 0x80000000)) + v
    return out

class Statement:
    """An applied or reject statement."""
    def __init__(self, kind, c):
        self.kind, self.ref, self.leaf, self.sig = kind, ref_of(c, "ref"), number(c, "leaf", 2**32), unb64(c.get("sig"))
        rule = c.get("rule", "")
        need(0 < len(self.sig) <= 256 and len(rule) <= 100 and all(" " < x <= "~" for x in rule))
        self.tail = ref_of(c, "hash") if kind == "applied" else vec(rule.encode())

    def content(self, room, group): return start(self.kind, room, group) + self.ref + u32(self.leaf) + self.tail

def proofs_of(c):
    """The statements among proofs, and their bytes."""
    statements, out = [], u32(len(c))
    need(len(c) <= 128)
    for p in c:
        a = Statement("applied", p["applied"]) if "applied" in p else None
        need(a is None or "commit" not in p)
        statements += [a] if a else []
        out += u8(1) + a.ref + u32(a.leaf) + a.tail + vec(a.sig) if a else u8(0) + ref_of(p, "commit")
    return statements, out

class Receipt:
    def __init__(self, kind, c, room):
        self.kind, self.cfg, self.rank, self.sig = kind, ref_of(c, "cfg"), number(c, "rank", 16), unb64(c.get("sig"))
        counter, prev = number(c, "counter"), ref_of(c, "prev", True)
        need(counter > 0 and (counter == 1) == (prev == ZERO) and len(self.sig) == 64)
        self.promises, self.votes, self.statements, self.provisional, self.last = [], [], [], c.get("provisional", False), None
        body = self.cfg
        if kind == "accept":
            need(("ballot" in c) != self.provisional)
            self.ballot = (0, self.rank) if self.provisional else ballot_of(c)
            self.ref, self.parent, self.epoch = ref_of(c, "ref"), ref_of(c, "parent", True), number(c, "epoch")
            self.promises = [Receipt("promise", p, room) for p in c.get("promises", [])]
            self.votes = [Receipt("vote", v, room) for v in c.get("votes", [])]
            need(self.ballot[1] == self.rank and len(self.promises) <= 16 and len(self.votes) <= 8 and (self.ballot[0] or not self.promises))
            body += ballot_bytes(self.ballot) + u8(self.provisional) + self.ref + self.parent + u64(self.epoch)
            body += b"".join(u32(len(rs)) + b"".join(r.hash for r in rs) for rs in (self.promises, self.votes))
        elif kind == "vote":
            self.ballot, self.ref, (self.statements, proofs) = ballot_of(c), ref_of(c, "ref"), proofs_of(c.get("proofs", []))
            body += ballot_bytes(self.ballot) + u32(self.rank) + self.ref + proofs
        elif kind == "promise":
            self.ballot = ballot_of(c)
            need(self.ballot[0] > 0)
            body += ballot_bytes(self.ballot) + u32(self.rank) + u8("last" in c)
            if "last" in c:
                last, (self.statements, proofs) = c["last"], proofs_of(c["last"].get("proofs", []))
                self.last = ballot_of(last), ref_of(last, "ref"), number(last, "epoch")
                body += ballot_bytes(self.last[0]) + self.last[1] + u64(self.last[2]) + proofs
        else:
            body += u32(self.rank)
        self.signed = start(kind, room) + body + u64(counter) + prev
        self.hash = hashlib.sha256(self.signed + self.sig).digest()

def leaves_of(ls): return [(l["leaf"], l["user"], unb64(l["key"])) for l in ls]

class Policy:
    def __init__(self, c):
        self.rest = {k: v for k, v in c.items() if k != "sequencers"}
        self.list = [(s["server"], s["user"], unb64(s["receipt_key"])) for s in c["sequencers"]]
        self.admins, self.heirs = c["admins"], [(h["user"], h["server"]) for h in c.get("heirs", [])]
        self.window, self.freeze = c.get("window", 16), c.get("on_partition") == "freeze"
        need(len(self.list) <= 16 and all(s and u and len(k) == 32 for s, u, k in self.list))
        need(len({u for _, u, _ in self.list}) == len({k for _, _, k in self.list}) == len(self.list))

class Node:
    """A commit in the tree, or the base; all fields are set by Room."""
    def path(self, cfg=None):
        """The commit and its ancestors; with cfg, as far as that list governs."""
        n = self
        while n and (cfg is None or n.governing == cfg):
            yield n
            n = n.up

    def extends(self, o): return any(n is o for n in self.path())
    governing = property(lambda n: n.up.cfg if n.up and not n.era else None)
    list_change = property(lambda n: n.sets and n.up and not n.era)
    accepted = property(lambda n: n.ballot is not None or n.own is not None or n.indirect or n.below_final)

class Nodes(dict):
    """Commits by ref."""
    def __missing__(self, ref): raise Waits

class Room:
    def __init__(self, vector):
        self.room, b, n = vector["room"], vector["base"], Node()
        self.base, n.up, n.depth, n.kids, n.era, n.author, n.only_removes, n.era_base = n, None, 0, [], None, None, False, n
        n.ref, n.epoch, n.cfg, n.group, n.suite = unb64(b["ref"]), b["epoch"], unb64(b["cfg"]), unb64(b["group_id"]), b["suite"]
        n.policy, n.era_no, n.sets, n.alone = Policy(b["policy"]), b["era"], n.cfg == n.ref, False
        n.leaves = {i: (u, k, 0) for i, u, k in leaves_of(b["leaves"])}
        self.whole, self.refounded = n.epoch == 0 and n.era_no == 0 and n.sets, False
        self.nodes, self.receipts, self.applied, self.rejected = Nodes({n.ref: n}), {}, {}, set()
        held, self.gone = 0, set()  # gone: refs of commits beside the base
        while held < len(self.nodes) + len(self.gone):  # 4: again, until no further commit finds its parent
            held = len(self.nodes) + len(self.gone)
            self.refused = [i for i, ev in enumerate(vector["events"]) if self.refuses(ev["type"].removeprefix(PREFIX), ev["content"])]
        self.order = sorted(self.nodes.values(), key=lambda n: (n.depth, n.ref))
        self.evaluate()
    def refuses(self, kind, c):
        try:
            if kind == "commit":
                self.commit(c)
            elif kind in ("applied", "reject"):
                self.statement(Statement(kind, c))
            else:
                self.receipt(Receipt(kind, c, self.room))
        except Waits:
            pass
        except Refused:
            return True
    def commit(self, c):
        ref, parent, era, founding = ref_of(c, "ref"), ref_of(c, "parent"), c.get("era"), c.get("founding")
        policy = Policy(c["policy"]) if "policy" in c else None
        need(ref != parent and (not era or policy and policy.list))
        if o := self.nodes.get(ref):
            return need(o.up is None or o.up.ref == parent)
        need(founding or self.refounded or c["epoch"] > self.base.epoch)
        if parent in self.gone or parent not in self.nodes and not (founding or self.refounded or self.whole) and c["epoch"] == self.base.epoch + 1:
            return self.gone.add(ref)
        n, up = Node(), self.nodes[parent]
        n.ref, n.up, n.depth, n.epoch, n.kids, n.era, n.author = ref, up, up.depth + 1, c["epoch"], [], era, c["author_user"]
        n.group, n.suite, n.leaves, n.only_removes = up.group, up.suite, dict(up.leaves), c.get("only_removes", False)
        n.policy, n.voucher = policy or up.policy, None
        n.sets = bool(era) or n.policy.list != up.policy.list
        n.cfg = ref if n.sets else up.cfg
        n.era_no, n.era_base = (era["number"], n) if era else (up.era_no, up.era_base)
        need(not era or n.era_no == up.era_no + 1 and (not era.get("by_heirs") or n.policy.rest == up.policy.rest))
        if founding:
            self.refounded, n.group, n.suite = True, unb64(founding["group_id"]), founding["suite"]
            n.leaves = {i: (u, k, n.depth) for i, u, k in leaves_of(founding["leaves"])}
        else:
            need(n.epoch == up.epoch + 1 and (c.get("external") or c["author"] in up.leaves and up.leaves[c["author"]][0] == n.author))
            for i in c.get("removed", []):
                need(n.leaves.pop(i, None))
            for i, u, k in leaves_of(c.get("updated", [])):
                need(i in n.leaves and n.leaves[i][0] == u)
                n.leaves[i] = u, k, n.leaves[i][2]
            for i, u, k in leaves_of(c.get("added", [])):
                need(i not in n.leaves)
                n.leaves[i] = u, k, n.depth
            need(n.leaves)
            if c.get("external"):
                need(c["author"] in n.leaves and n.leaves[c["author"]][::2] == (n.author, n.depth))
            else:
                n.voucher = up.leaves[c["author"]][::2]
        n.alone = bool(founding) or all(u == n.author or since >= n.depth for u, _, since in n.leaves.values())
        self.nodes[ref] = n
        up.kids.append(n)
    def list_of(self, cfg):
        n = self.base if cfg == self.base.cfg else self.nodes[cfg]
        return n.policy.list if n is self.base or n.sets else self.nodes[None]
    def statement(self, s):
        n = self.nodes[s.ref]
        n = n if s.kind == "applied" else n.up
        if n:
            need(s.leaf in n.leaves and n.suite in (1, 3))  # of the suites, those with Ed25519
            user, key, since = n.leaves[s.leaf]
            need(ed25519(key, with_label(s.content(self.room, n.group)), s.sig))
            self.applied.setdefault(s.ref, set()).add((user, since)) if s.kind == "applied" else self.rejected.add(s.ref)
    def signed(self, r, seqs):
        """What can be checked of a receipt without its commit."""
        need(r.rank < len(seqs) and (r.kind == "ready" or r.ballot[1] < len(seqs)) and (r.last is None or r.last[0] < r.ballot))
        need(ed25519(seqs[r.rank][2], r.signed, r.sig))
    def receipt(self, r):
        if r.kind in ("accept", "vote"):
            if r.ref == self.base.ref:
                return
            need(r.kind == "vote" or self.refounded or r.epoch > self.base.epoch)
            n, seqs = self.nodes[r.ref], self.list_of(r.cfg)
            need(n.governing == r.cfg and (r.kind == "vote" or (n.up.ref, n.epoch) == (r.parent, r.epoch)))
        else:
            seqs = self.list_of(r.cfg)
        need(all((p.cfg, p.ballot) == (r.cfg, r.ballot) for p in r.promises) and all((v.cfg, v.rank) == (r.cfg, r.rank) for v in r.votes))
        for x in [r] + r.promises + r.votes:
            self.signed(x, seqs)
        self.receipts.setdefault(r.cfg, {})[r.hash] = r
        for part in r.votes + r.promises + r.statements:
            try:
                self.statement(part) if isinstance(part, Statement) else self.receipt(part)
            except (Waits, Refused):
                pass
    # 5: the outcome
    def evaluate(self):
        for n in self.order:
            n.vouchers = self.applied.get(n.ref, set()) | {k.voucher for k in n.kids if k.voucher}
            n.final, n.ballot, n.own, n.indirect, n.below_final = n is self.base, None, None, False, False
        for n in reversed(self.order):
            n.all_vouchers = n.vouchers.union(*(k.all_vouchers for k in n.kids))
            n.vouched = n is self.base or any(n.alone or since < n.depth and u != n.author for u, since in n.all_vouchers)
        for n in self.order:
            n.votable = n.vouched and (n.up is None or bool(n.era) or n.up.votable)
            n.doubt = n.ref in self.rejected and not n.vouched
        for n in self.order:
            if n is self.base or n.sets and (n.era or n.final):
                self.votes(n.cfg)
                self.accepts(n.cfg, n)
        for n in reversed(self.order):
            n.below_final = n.final or any(k.below_final and not k.era for k in n.kids)
        self.eras()
        self.walk()
    def of(self, cfg, kind): return [r for r in self.receipts.get(cfg, {}).values() if r.kind == kind]
    def quorum(self, cfg): return len(self.list_of(cfg)) // 2 + 1
    def votes(self, cfg):
        voted = {}
        for v in self.of(cfg, "vote"):
            if self.nodes[v.ref].votable:
                for x in self.nodes[v.ref].path(cfg):
                    voted.setdefault((v.ballot, x), set()).add(v.rank)
        for (_, x), who in voted.items():
            x.final = x.final or len(who) >= self.quorum(cfg)
    def accepts(self, cfg, base):
        valid = {}  # by ballot: [(top, from)]
        for a in sorted(self.of(cfg, "accept"), key=lambda a: a.ballot):
            n = self.nodes[a.ref]
            if a.provisional and not n.sets:
                n.own = a.rank if n.own is None else min(n.own, a.rank)
                for x in n.up.path(cfg):
                    x.indirect = True
            elif not a.provisional:
                bound = base if a.ballot == (0, 0) else self.bound(a, valid, cfg, base)
                if bound and n.extends(bound):
                    valid.setdefault(a.ballot, []).append((n, bound))
        for ballot, tops in valid.items():
            for n, _ in tops:
                lie = any(not n.extends(o) and not o.extends(n) for o, _ in tops)
                for x in n.path(cfg):
                    x.indirect = x.indirect or lie
                    x.ballot = x.ballot if lie else max(ballot, x.ballot or ballot)
    def bound(self, a, valid, cfg, base):
        counted, best = set(), ((), base)
        for p in a.promises:
            n = self.nodes.get(p.last[1]) if p.last else None
            backed = n and n.votable and any(top.extends(n) and n.extends(fr) for top, fr in valid.get(p.last[0], ()))
            below = p.last and (p.last[1] in self.gone or p.last[2] <= self.base.epoch and not self.refounded)
            if p.rank in counted or p.last and not backed and (self.whole or not (n is self.base or n.final if n else below)):
                continue
            counted.add(p.rank)
            if backed or n is self.base:
                best = max(best, ((p.last[0], n.depth, [-x for x in n.ref]), n), key=lambda b: b[0])
        return best[1] if len(counted) >= self.quorum(cfg) else None
    def eras(self):
        for n in self.order:
            n.counts = n is self.base
            n.newest = min((x for x in self.order if x.era_base is n and x.final), key=lambda x: (-x.depth, x.ref), default=n)
        for n in self.order:
            if n.era and n.vouched and self.entitled(n):
                n.counts = n.final = True
        self.era = min((n for n in self.order if n.counts), key=lambda n: (-n.era_no, bool(n.era and n.era.get("by_heirs")),
                       -next((x.depth for x in n.path() if x is not n and x.final), 0), n.ref))
    def entitled(self, n):
        left = n.up.era_base
        if not left.counts or n.up is not left and not n.up.accepted:
            return False
        if not n.era.get("by_heirs"):
            return n.author in n.up.policy.admins and n.author in left.newest.policy.admins
        present, signed = {u for u, _, _ in left.newest.leaves.values()}, set(n.era.get("signers", [])) | {n.author}
        heirs = [(u, s) for u, s in left.newest.policy.heirs if u in present]
        return n.author in {u for u, _ in heirs} and 2 * len({s for u, s in heirs if u in signed}) > len({s for _, s in heirs})
    def walk(self):
        def first(n):
            mark = (0, -n.ballot[0], -n.ballot[1]) if n.ballot else (1, n.own) if n.own is not None else (2,)
            return bool(n.list_change and not n.final), mark, n.ref
        head = self.final = self.era.newest
        while kids := [k for k in head.kids if not k.era and k.accepted]:
            head = min(kids, key=first)
        self.head, doubted = head, [n for n in head.path() if n.doubt and n.depth > self.era.depth]
        self.safe = doubted[-1].up if doubted else head
        self.usable, votable = self.final, 0
        for n in reversed([n for n in head.path() if n.depth > self.final.depth]):
            votable += n.votable and not n.final and not n.only_removes
            if not n.final and (n.list_change or n.up.policy.freeze) or votable > n.up.policy.window:
                break
            self.usable = n
    def status(self, n):
        on = self.head.extends(n)
        words = (("final", on and n.final), ("in doubt", n.doubt), ("waiting", not n.accepted and not (n.era and on)), ("displaced", not on),
                 ("side branch", n.ballot is None and not n.below_final), ("votable", n.votable), ("accepted", True))
        return next(word for word, holds in words if holds)
    def evidence(self):
        def off(a, b):
            x, y = self.nodes[a.ref], self.nodes[b.ref]
            return a.ballot == b.ballot and not x.extends(y) and not y.extends(x)
        def twice(p, o): return p is not o and p.ballot == o.ballot
        def understated(p, v):
            n = self.nodes.get(p.last[1]) if p.last else None
            return v.ballot < p.ballot and (not p.last or p.last[0] < v.ballot or p.last[0] == v.ballot and n and not n.extends(self.nodes[v.ref]))
        out = set()
        for cfg in self.receipts:
            accepts, votes, promises = [a for a in self.of(cfg, "accept") if not a.provisional], self.of(cfg, "vote"), self.of(cfg, "promise")
            for kind, these, those, lie in (
                    ("accepts-off-one-chain", accepts, accepts, off), ("votes-off-one-chain", votes, votes, off),
                    ("vote-off-own-accepts", votes, accepts, off), ("two-promises-for-one-ballot", promises, promises, twice),
                    ("vote-understated-in-promise", promises, votes, understated)):
                out |= {f"{kind} {b64(cfg)} {a.rank}" for a in these for b in those if a.rank == b.rank and lie(a, b)}
        return sorted(out)
    def outcome(self):
        commits = {}
        for n in self.order[1:]:
            flags = {"accepted": n.accepted or n.era and self.head.extends(n), "votable": n.votable, "in_doubt": n.doubt, "final": n.final}
            commits[b64(n.ref)] = {"status": self.status(n)} | {k: True for k, v in flags.items() if v}
        refs = {"head": self.head, "safe_head": self.safe, "usable_head": self.usable, "final": self.final, "era_base": self.era}
        lists = {k: v for k, v in (("refused", self.refused), ("evidence", self.evidence())) if v}
        return {k: b64(n.ref) for k, n in refs.items()} | {"era": self.era.era_no, "commits": commits} | lists

if __name__ == "__main__":
    for file in sys.argv[1:]:
        with open(file, encoding="utf-8") as f:
            vector = json.load(f, object_pairs_hook=lambda pairs: {k: v for k, v in pairs if v is not None})
        outcome = Room(vector).outcome()
        print(json.dumps({"name": vector["name"], "outcome": outcome, "as_expected": outcome == vector["expect"]}))
