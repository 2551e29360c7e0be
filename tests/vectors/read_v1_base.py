"""Building blocks of the independent reader: hashes, sealed blobs, signatures, fields (docs/FORMAT.md, sections 1 and 3)."""

import hashlib
import hmac


class Bad(Exception):
    """A failed check: its class and what was wrong."""

    def __init__(self, cls, what):
        super().__init__(f"{what}: failure class {cls}")
        self.cls = cls


def need(cls, good, what):
    if not good:
        raise Bad(cls, what)


# --- section "Notation" and section 3 -------------------------------------------------------------------------------------


def sha256(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


def hmac256(key, *parts):
    return hmac.new(key, b"".join(parts), hashlib.sha256).digest()


def expand(prk, info, n):
    out = block = b""
    counter = 1
    while len(out) < n:
        block = hmac.new(prk, block + info + bytes([counter]), hashlib.sha512).digest()
        out += block
        counter += 1
    return out[:n]


def hkdf(salt, ikm, info, n):
    return expand(hmac.new(salt, ikm, hashlib.sha512).digest(), info, n)


def blob_len(n):
    return 56 + n + 16 * (n // 16384 + 1)


def xor_nonce(base, i):
    return (int.from_bytes(base, "big") ^ i).to_bytes(12, "big")


def open_aead(suite, key, nonce, sealed, aad):
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

    cipher = AESGCM(key) if suite == 1 else ChaCha20Poly1305(key)
    try:
        return cipher.decrypt(nonce, sealed, aad)
    except InvalidTag:
        return None


def open_blob(cls, key, context, blob):
    need(cls, len(blob) >= 56 + 16, "a sealed blob is too short")
    salt, commitment, body = blob[:24], blob[24:56], blob[56:]
    okm = expand(key, b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\0" + salt + context, 76)
    need(cls, hmac.compare_digest(okm[44:], commitment), "a sealed blob belongs to another key or place")
    chunks = [body[i : i + 16400] for i in range(0, len(body), 16400)]
    if len(chunks[-1]) == 16400:
        raise Bad(cls, "a sealed blob is cut short")
    out = []
    for i, chunk in enumerate(chunks):
        plain = open_aead(1, okm[:32], xor_nonce(okm[32:44], i), chunk, b"") if len(chunk) >= 16 else None
        need(cls, plain is not None, "a sealed blob does not authenticate")
        out.append(plain)
    return b"".join(out)


# Encodings of the points of small order: no key of anybody, and no part of an honest signature.
SMALL_ORDER = {
    bytes.fromhex(y[:62] + f"{int(y[62:], 16) | sign:02x}")
    for y in (
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    )
    for sign in (0, 0x80)
}


def verify_signature(public, message, signature):
    """Ed25519, strict: RFC 8032 (OpenSSL refuses S beyond the group order), and no points of small order."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if public in SMALL_ORDER or signature[:32] in SMALL_ORDER:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
        return True
    except (InvalidSignature, ValueError):
        return False


class Fields:
    """Reads fields from the front of some bytes."""

    def __init__(self, data, cls):
        self.data, self.at, self.cls = data, 0, cls

    def take(self, n):
        need(self.cls, self.at + n <= len(self.data), "a record is cut short")
        self.at += n
        return self.data[self.at - n : self.at]

    def u(self, n):
        return int.from_bytes(self.take(n), "big")

    def i64(self):
        return int.from_bytes(self.take(8), "big", signed=True)

    def time(self):
        sec, nsec = self.i64(), self.u(4)
        need(self.cls, nsec < 10**9, "a time has too many nanoseconds")
        return sec, nsec

    def zeros(self, n):
        need(self.cls, not any(self.take(n)), "reserved bytes are in use")

    def left(self):
        return len(self.data) - self.at

    def end(self):
        need(self.cls, self.left() == 0, "there are bytes after the end")
