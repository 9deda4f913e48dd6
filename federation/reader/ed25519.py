"""Ed25519 verification (RFC 8032) with nothing but the standard library; for test vectors, not for secrets: it is slow and its time varies."""
import functools, hashlib

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
def verify(key, content, sig):
    """Whether sig is the signature over content of a public key, all of them bytes."""
    if len(key) != 32 or len(sig) != 64:
        return False
    a, s = point(key), int.from_bytes(sig[32:], "little")
    if a is None or s >= L:
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
