"""Ed25519 verification (RFC 8032) with nothing but the standard library; for test vectors, not for secrets: it is slow and its time varies."""
import functools, hashlib

P, L = 2**255 - 19, 2**252 + 27742317777372353535851937790883648493  # the field, the group's order
D, I = -121665 * pow(121666, -1, P) % P, pow(2, (P - 1) // 4, P)

def point(b):  # in extended coordinates; None if it is none
    sign, y = b[31] >> 7, int.from_bytes(b, "little") % 2**255 % P
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

@functools.cache
def verify(key, content, sig):
    """Whether sig is the signature over content of a public key, all of them bytes."""
    a, s = point(key) if len(key) == 32 else None, int.from_bytes(sig[32:], "little")
    if len(sig) != 64 or a is None or s >= L: return False
    k = int.from_bytes(hashlib.sha512(sig[:32] + key + content).digest(), "little") % L
    base, minus = point((4 * pow(5, -1, P) % P).to_bytes(32, "little")), (P - a[0], a[1], 1, P - a[3])
    table, r = (None, base, minus, add(base, minus)), (0, 1, 1, 0)
    for i in range(253, -1, -1):  # s·B − k·A, both at once
        r = add(r, r)
        if t := (s >> i & 1) + 2 * (k >> i & 1): r = add(r, table[t])
    x, y = (v * pow(r[2], -1, P) % P for v in r[:2])
    return (y | (x & 1) << 255).to_bytes(32, "little") == sig[:32]
