#!/usr/bin/env python3
"""An independent reader of smpfs buckets, format version 1, written from docs/FORMAT.md.

    read_v1.py bucket STORE (--passphrase-file F | --recovery-file F) [--extract DIR] [--json]
    read_v1.py vectors DIR          checks golden.json, negative.json, the golden buckets, log.smp and lease.smp

STORE is a directory (also as dir:///path), or s3://bucket[/prefix]; for S3 the environment holds AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, perhaps AWS_SESSION_TOKEN, AWS_REGION, and AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL.

It verifies everything that can be verified without local state: config, every index object, every file with all leaves and
chunks. The first failure of each file is printed with its class; the exit status is 1 if there was any, 2 for usage errors.
Needs the package `cryptography` (44 or later) and nothing else. The files beside it: read_v1_base.py has the building blocks,
read_v1_store.py fetches objects, read_v1_vectors.py checks vectors.
"""

import argparse
import hashlib
import hmac
import json
import math
import os
import stat
import struct
import sys
import unicodedata

from read_v1_base import Bad, Fields, blob_len, expand, hkdf, hmac256, need, open_aead, open_blob, sha256, verify_signature, xor_nonce

MIN_OBJECT = 1096
MAX_SEGMENTS = 1 << 20
MAX_PAYLOAD = 16 << 20
# Types of what can have several names.
LINKABLE = (1, 3, 4, 5, 6, 7)


class Locked(Exception):
    """No slot opens with this passphrase or recovery code."""


# --- section 5: keys ----------------------------------------------------------------------------------------------------


class Volume:
    """Parameters of a volume and the keys that follow from its root key."""

    def __init__(self, vrk, volume_id, suite, chunk_log2, seg_log2, keks=None):
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        self.id, self.suite, self.chunk_log2, self.seg_log2 = volume_id, suite, chunk_log2, seg_log2
        self.C, self.S = 1 << chunk_log2, 1 << (chunk_log2 + seg_log2)
        self.vrk, self.keks = vrk, keks
        self.owner = Ed25519PrivateKey.from_private_bytes(self.key("owner-sign")).public_key().public_bytes_raw()

    def key(self, label):
        return hkdf(self.id, self.vrk, b"smpfs/v1/key\0" + label.encode(), 32)

    def segment_stored(self, plain):
        return plain + 48 * -(-plain // self.C) + 16


def read_params(f):
    """Version, suite, geometry, flags: what header and trailer share."""
    need("version", f.u(2) == 1, "unknown version")
    suite = f.u(2)
    need("suite", suite in (1, 2), "unknown suite")
    chunk_log2, seg_log2 = f.u(1), f.u(1)
    need("params", 14 <= chunk_log2 <= 20 and 4 <= seg_log2 <= 10, "geometry out of range")
    need("params", f.u(2) == 0, "unknown flag")
    return suite, chunk_log2, seg_log2


# --- section 4: sealed files --------------------------------------------------------------------------------------------


def read_header(data):
    f = Fields(data[:128], "length")
    need("magic", f.take(8) == b"\x89SMPFS1\n", "not an object of smpfs")
    params = read_params(f)
    volume, file_id = f.take(16), f.take(32)
    f.cls = "params"
    f.zeros(64)
    return params, volume, file_id


def read_trailer(data):
    f = Fields(data, "params")
    need("magic", f.take(8) == b"SMPTAIL\x01", "not a trailer")
    t = {"params": read_params(f), "volume": f.take(16), "file_id": f.take(32)}
    t.update(generation=f.u(8), off=f.u(8), len=f.u(8), epoch=f.u(4), writer=f.u(4))
    t.update(header_hash=f.take(32), body_root=f.take(32), manifest_hash=f.take(32), previous=f.take(32))
    t.update(wrapped=f.take(104), bind=f.take(32))
    f.zeros(88)
    need("params", t["generation"] > 0 and (t["generation"] == 1) == (not any(t["previous"])), "generation and predecessor")
    return t


def read_manifest(plain, generation):
    f = Fields(plain, "manifest")
    m = {"size": f.u(8), "mtime": f.time(), "ctime": f.time(), "mode": f.u(4), "n": f.u(8)}
    flags, m["content"], m["dir"] = f.u(4), f.take(32), f.take(16)
    name_len = f.u(2)
    need("manifest", name_len <= 255, "name too long")
    m["name"] = f.take(name_len)
    f.zeros(255 - name_len + 31)
    need("manifest", m["mode"] <= 0o7777 and flags & ~3 == 0, "unknown bits")
    need("manifest", flags & 1 or not any(m["content"]), "content hash without its flag")
    m["content"] = m["content"] if flags & 1 else None
    need("manifest", f.left() == 80 * m["n"], "number of records")
    m["records"] = []
    for _ in range(m["n"]):
        secret, root, written, rflags = f.take(32), f.take(32), f.u(8), f.u(8)
        need("manifest", 1 <= written <= generation and rflags in (0, 1), "record")
        need("manifest", not rflags or not any(secret + root), "a hole has a key or root")
        m["records"].append(None if rflags else (secret, root))
    need("manifest", (None in m["records"]) == bool(flags & 2), "hole flag")
    return m


def check_version(known, found):
    need("rollback", found[0] >= known[0], "an older version was put back")
    need("fork", found[0] > known[0] or found[1] == known[1], "another version of the same generation")


def open_object(v, expect, data):
    """Section 4.5, steps 1 to 10; the manifest with its trailer."""
    need("length", len(data) >= MIN_OBJECT, "shorter than an empty file")
    header, volume, file_id = read_header(data)
    tail = data[-512:]
    t = read_trailer(tail)
    for params in (header, t["params"]):
        need("suite", params[0] == v.suite, "suite is not the volume's")
        need("params", params[1:] == (v.chunk_log2, v.seg_log2), "geometry is not the volume's")
    need("signature", t["writer"] == 0, "unknown writer")
    need("signature", verify_signature(v.owner, b"smpfs/v1/trailer\0" + tail[:448], tail[448:]), "trailer")
    for vol, fid in ((volume, file_id), (t["volume"], t["file_id"])):
        need("identity", vol == v.id and fid == expect["file_id"], "object of another file")
    check_version((expect["generation"], expect["trailer_hash"]), (t["generation"], sha256(tail)))
    need("header-hash", sha256(data[:128]) == t["header_hash"], "header")
    need("manifest-hash", t["off"] >= 128 and t["off"] + t["len"] + 512 == len(data), "manifest offset")
    sealed = data[t["off"] : t["off"] + t["len"]]
    need("manifest-hash", sha256(sealed) == t["manifest_hash"], "manifest")
    need("key-wrap", t["epoch"] in v.keks, "unknown epoch")
    key = open_blob("key-wrap", v.keks[t["epoch"]], b"smpfs/v1/fk\0" + v.id + t["file_id"], t["wrapped"])
    need("key-wrap", key == expect["file_key"], "the file key is not the index entry's")
    context = b"smpfs/v1/manifest\0" + v.id + t["file_id"] + struct.pack(">Q", t["generation"])
    m = read_manifest(open_blob("manifest", key, context, sealed), t["generation"])
    check_sizes(v, m, t, len(data))
    roots = b"".join(r[1] for r in m["records"] if r)
    need("body-root", sha256(b"smpfs/v1/body\0", roots) == t["body_root"], "segment roots")
    m["file_id"] = t["file_id"]
    return m


def check_sizes(v, m, t, length):
    n = -(-m["size"] // v.S)
    need("size", n == m["n"] and n <= MAX_SEGMENTS, "size and number of segments")
    at, m["segments"] = 128, []
    for k, record in enumerate(m["records"]):
        plain = min(v.S, m["size"] - k * v.S)
        m["segments"].append((k, record, at, plain))
        at += v.segment_stored(plain) if record else 0
    need("size", at == t["off"] and t["len"] == blob_len(384 + 80 * n) and at + t["len"] + 512 == length, "offsets")


def read_object(v, m, data):
    """Verifies leaves, opens chunks; yields plaintext piece by piece."""
    for k, record, at, plain in m["segments"]:
        if record is None:
            yield bytes(plain)
            continue
        secret, root = record
        count = -(-plain // v.C)
        stored = data[at : at + v.segment_stored(plain)]
        body = plain + 16 * count
        chunks = [stored[i : min(i + v.C + 16, body)] for i in range(0, body, v.C + 16)]
        foot = struct.pack(">QII", k, count, 0)
        leaves = [sha256(b"\0", c) for c in chunks]
        need("leaf", stored[body:] == foot + b"".join(leaves), "leaves as stored")
        need("leaf", sha256(b"smpfs/v1/segroot\0", foot, *leaves) == root, "segment root")
        info = b"smpfs/v1/seg\0" + struct.pack(">HBB", v.suite, v.chunk_log2, v.seg_log2) + m["file_id"] + struct.pack(">Q", k)
        okm = expand(secret, info, 44)
        for i, chunk in enumerate(chunks):
            aad = m["file_id"] + struct.pack(">Q", (k << v.seg_log2) + i)
            text = open_aead(v.suite, okm[:32], xor_nonce(okm[32:], i), chunk, aad)
            need("chunk", text is not None, "chunk")
            yield text


# --- section 6: volume config -------------------------------------------------------------------------------------------


def parse_config(data):
    need("length", len(data) <= 65536, "config too long")
    f = Fields(data, "length")
    need("magic", f.take(8) == b"SMPVOL\x01\n", "not a volume config")
    need("version", f.u(2) == 1, "unknown version")
    c = {"mode": f.u(1)}
    need("params", c["mode"] in (1, 2) and f.u(1) == 0, "mode or reserved byte")
    c["suite"] = f.u(2)
    need("suite", c["suite"] in (1, 2), "unknown suite")
    c["chunk_log2"], c["seg_log2"] = f.u(1), f.u(1)
    need("params", 14 <= c["chunk_log2"] <= 20 and 4 <= c["seg_log2"] <= 10, "geometry")
    need("params", f.u(4) == 0, "unknown flag")
    c["volume"], c["generation"] = f.take(16), f.u(8)
    need("params", c["generation"] > 0, "generation zero")
    c["owner"], c["root"], c["created"] = f.take(32), f.take(16), f.i64()
    name_len = f.u(2)
    need("params", name_len <= 255, "name too long")
    try:
        c["name"] = f.take(name_len).decode()
    except UnicodeDecodeError:
        raise Bad("params", "name is not UTF-8") from None
    c["epochs"] = f.take(f.u(4))
    count = f.u(1)
    need("params", 1 <= count <= 16, "number of slots")
    c["slots"] = [read_slot(f) for _ in range(count)]
    c["maced"] = data[: f.at]
    c["mac"] = f.take(32)
    signed = data[: f.at]
    signature = f.take(64)
    f.end()
    need("signature", verify_signature(c["owner"], b"smpfs/v1/volume\0" + signed, signature), "config")
    return c


def read_slot(f):
    s = {"kind": f.u(1), "m": f.u(4), "t": f.u(4), "p": f.u(4), "salt": f.take(32), "wrapped": f.take(104)}
    cost = (s["m"], s["t"], s["p"])
    bounded = 65536 <= s["m"] <= 4194304 and 1 <= s["t"] <= 64 and 1 <= s["p"] <= 16
    need("params", (s["kind"] == 1 and bounded) or (s["kind"] == 2 and cost == (0, 0, 0)), "slot kind or cost")
    return s


def slot_key(c, s, kind, secret):
    if kind == 2:
        return hkdf(s["salt"], secret, b"smpfs/v1/recovery\0" + c["volume"], 32)
    from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

    return Argon2id(salt=s["salt"], length=32, iterations=s["t"], lanes=s["p"], memory_cost=s["m"]).derive(secret)


def unlock(c, kind, secret):
    """Tries the slots of a kind (1 passphrase, 2 recovery code); a Volume, or Locked."""
    for s in c["slots"]:
        if s["kind"] != kind:
            continue
        context = b"smpfs/v1/slot\0" + c["volume"] + struct.pack(">BIII", s["kind"], s["m"], s["t"], s["p"]) + s["salt"]
        try:
            vrk = open_blob("key-wrap", slot_key(c, s, kind, secret), context, s["wrapped"])
            break
        except Bad:
            continue
    else:
        raise Locked("no slot of the volume opens with this passphrase or code")
    v = Volume(vrk, c["volume"], c["suite"], c["chunk_log2"], c["seg_log2"])
    need("mac", v.owner == c["owner"], "config signed by somebody without the keys")
    mac = hmac256(v.key("config-mac"), b"smpfs/v1/volume\0", c["maced"])
    need("mac", hmac.compare_digest(mac, c["mac"]), "config MAC")
    f = Fields(open_blob("key-wrap", v.key("epochs"), b"smpfs/v1/epochs\0" + v.id, c["epochs"]), "params")
    count = f.u(4)
    need("params", 1 <= count <= 1024, "number of epochs")
    v.keks = {}
    for epoch in range(1, count + 1):
        need("params", f.u(4) == epoch, "epochs out of order")
        v.keks[epoch] = f.take(32)
    f.end()
    return v


def recovery_code(text):
    import base64
    import binascii

    plain = "".join(text.split()).replace("-", "").upper()
    try:
        raw = base64.b32decode(plain)
    except binascii.Error:
        raise Locked("this is no recovery code") from None
    if len(raw) != 35 or sha256(b"smpfs/v1/recovery-check\0", raw[:32])[:3] != raw[32:]:
        raise Locked("the recovery code is mistyped")
    return raw[:32]


# --- section 7: directory index -----------------------------------------------------------------------------------------


def padded(n):
    n = max(n, 4096)
    e = int(math.log2(n))
    e -= (1 << e) > n
    s = int(math.log2(e)) + 1
    step = 1 << (e - s)
    return -(-n // step) * step


def index_key(v, dir_id, epoch, slot):
    return ".smpfs/d/" + hmac256(v.key("dir-name"), dir_id, struct.pack(">II", epoch, slot)).hex()[:32]


def object_key(file_id):
    return f".smpfs/o/{file_id.hex()[:2]}/{file_id.hex()[2:]}"


def shard_of(name, bits):
    return int.from_bytes(sha256(name), "big") >> (256 - bits)


def open_index(v, dir_id, dir_key, epoch, slot, data):
    f = Fields(data, "index")
    need("index", f.take(8) == b"SMPDIR\x01\n" and f.u(2) == 1, "not an index object of version 1")
    f.zeros(2)
    writer, volume = f.u(4), f.take(16)
    need("index", writer == 0 and volume == v.id, "writer or volume")
    blob = f.take(f.u(4))
    signed = data[: f.at]
    need("index", verify_signature(v.owner, b"smpfs/v1/index\0" + signed, f.take(64)), "signature")
    f.end()
    context = b"smpfs/v1/index\0" + v.id + dir_id + struct.pack(">II", epoch, slot)
    node = parse_payload(open_blob("index", dir_key, context, blob))
    place = (0, 0) if node["kind"] == 1 else (node["epoch"], node["slot"])
    need("index", place == (epoch, slot), "index object of another place")
    return node


# --- section 7.3: the lease ------------------------------------------------------------------------------------------------


def open_lease(v, data):
    need("lease", len(data) == 360, "length")
    f = Fields(data, "lease")
    need("lease", f.take(8) == b"SMPLSE\x01\n" and f.u(2) == 1, "not a lease of version 1")
    f.zeros(2)
    need("lease", f.u(4) == 0 and f.take(16) == v.id, "writer or volume")
    blob = f.take(264)
    need("lease", verify_signature(v.owner, b"smpfs/v1/lease\0" + data[: f.at], f.take(64)), "signature")
    f = Fields(open_blob("lease", v.key("lease"), b"smpfs/v1/lease\0" + v.id, blob), "lease")
    lease = {"holder": f.take(16), "mount": f.take(16), "sequence": f.u(8), "taken": f.time(), "issued": f.time(), "period": f.u(4)}
    need("lease", lease["sequence"] > 0 and 1 <= lease["period"] <= 600, "sequence or period")
    length = f.u(1)
    need("lease", length <= 64, "host too long")
    try:
        lease["host"] = f.take(length).decode()
    except UnicodeDecodeError:
        raise Bad("lease", "host is not UTF-8") from None
    need("lease", all(unicodedata.category(c) != "Cc" for c in lease["host"]), "control characters in the host")
    f.zeros(f.left())
    return lease


# --- section 7: payloads of index objects ------------------------------------------------------------------------------------


def parse_payload(data):
    need("index", len(data) <= MAX_PAYLOAD, "payload too long")
    f = Fields(data, "index")
    node = {"kind": f.u(1), "flags": f.u(1), "bits": f.u(1)}
    f.zeros(1)
    node.update(epoch=f.u(4), slot=f.u(4), generation=f.u(8), previous=f.take(32))
    kind, bits, epoch, slot = node["kind"], node["bits"], node["epoch"], node["slot"]
    head = kind == 1 and slot == 0 and (bits == 0 or (bits <= 16 and epoch > 0))
    shard = kind == 2 and 1 <= bits <= 16 and epoch > 0 and slot < 1 << bits
    need("index", (head or shard) and node["flags"] & ~1 == 0, "kind, flags or place")
    first = not any(node["previous"])
    need("index", node["generation"] > 0 and (node["generation"] == 1) == first, "generation and predecessor")
    node["entries"], last = [], b""
    for _ in range(f.u(4)):
        entry = read_entry(f)
        need("index", entry["name"] > last, "entries out of order")
        last = entry["name"]
        need("index", (kind == 1 and bits == 0) or (kind == 2 and shard_of(last, bits) == slot), "entry in the wrong object")
        node["entries"].append(entry)
    need("index", padded(f.at) == len(data), "padding length")
    f.zeros(f.left())
    return node


def read_entry(f):
    name = f.take(f.u(2))
    good = 1 <= len(name) <= 255 and b"\0" not in name and b"/" not in name and name not in (b".", b"..")
    need("index", good, "name")
    e = {"name": name, "type": f.u(1), "mode": f.u(2), "uid": f.u(4), "gid": f.u(4)}
    need("index", e["mode"] <= 0o7777, "mode")
    e.update(atime=f.time(), mtime=f.time(), ctime=f.time(), btime=f.time())
    counted, e["type"], e["refs"] = e["type"] & 0x80, e["type"] & 0x7F, []
    need("index", not counted or e["type"] in LINKABLE, "entry type")
    if e["type"] == 1:
        e.update(file_id=f.take(32), file_key=f.take(32), generation=f.u(8), trailer_hash=f.take(32), size=f.u(8), len=f.u(8))
        e["key"] = read_key(f.take(f.u(2)))
        need("index", e["generation"] > 0, "file of generation zero")
    elif e["type"] == 2:
        e.update(dir_id=f.take(16), dir_key=f.take(32))
    elif e["type"] == 3:
        e["target"] = f.take(f.u(2))
        need("index", 1 <= len(e["target"]) <= 4095 and b"\0" not in e["target"], "symlink target")
    elif e["type"] in (6, 7):
        e["rdev"] = (f.u(4), f.u(4))
    elif e["type"] == 8:
        e.update(link_id=f.take(16), ref=f.take(16), kind=f.u(1))
        need("index", e["kind"] in LINKABLE, "a link to something that has one name")
        zero = [e["mode"], e["uid"], e["gid"], *e["atime"], *e["mtime"], *e["ctime"], *e["btime"]]
        need("index", not any(zero), "attributes of a link")
    else:
        need("index", e["type"] in (4, 5), "entry type")
    if counted:
        e["refs"] = [f.take(16) for _ in range(f.u(2))]
        need("index", e["refs"] and e["refs"] == sorted(set(e["refs"])), "names of an inode")
    e["xattrs"], last = {}, b""
    for _ in range(f.u(2)):
        name = f.take(f.u(1))
        need("index", name > last and b"\0" not in name, "extended attributes")
        last = name
        size = f.u(4)
        need("index", size <= 65536, "extended attribute too large")
        e["xattrs"][name] = f.take(size)
    need("index", e["type"] != 8 or not e["xattrs"], "attributes of a link")
    return e


def read_key(raw):
    try:
        key = raw.decode()
    except UnicodeDecodeError:
        raise Bad("index", "object key is not UTF-8") from None
    parts = key.split("/")
    good = len(raw) <= 900 and not any(unicodedata.category(c) == "Cc" for c in key)
    good = good and parts[0] != ".smpfs" and not any(p in ("", ".", "..") for p in parts)
    need("index", key == "" or good, "object key")
    return key


def list_dir(v, store, dir_id, dir_key):
    """All entries of a directory, from its head or its shards."""

    def fetch(epoch, slot):
        data = store.get(index_key(v, dir_id, epoch, slot))
        need("omission", data is not None, "an index object is gone")
        return open_index(v, dir_id, dir_key, epoch, slot, data)

    head = fetch(0, 0)
    entries = list(head["entries"])
    if head["bits"]:
        for slot in range(1 << head["bits"]):
            shard = fetch(head["epoch"], slot)
            need("index", shard["bits"] == head["bits"], "shard of another division")
            entries += shard["entries"]
    return sorted(entries, key=lambda e: e["name"])


# --- walking a bucket ---------------------------------------------------------------------------------------------------


class Walk:
    """Reads a whole volume; collects files, special entries and failures."""

    def __init__(self, v, store, extract):
        self.v, self.store, self.extract = v, store, extract
        self.files, self.others, self.failures, self.dirs = [], [], [], set()
        # The links directory, once a link was seen; the names that lead to each inode.
        self.inodes, self.named = None, {}

    def run(self, root):
        todo = [((), root, self.v.key("root-dir"))]
        while todo:
            path, dir_id, dir_key = todo.pop()
            try:
                need("index", dir_id not in self.dirs, "a directory is its own ancestor or has two parents")
                self.dirs.add(dir_id)
                for e in list_dir(self.v, self.store, dir_id, dir_key):
                    if not path and e["name"] == b".smpfs":
                        # The root's own attributes.
                        need("index", e["type"] == 2 and e["dir_id"] == dir_id, "the reserved name holds something else")
                        continue
                    if self.entry(path + (e["name"],), e):
                        todo.append((path + (e["name"],), e["dir_id"], e["dir_key"]))
            except Bad as bad:
                self.failures.append((path, bad))

    def resolve(self, e):
        """The inode that a link leads to (section 7.1)."""
        if self.inodes is None:
            entries = list_dir(self.v, self.store, self.v.key("links-id")[:16], self.v.key("links-dir"))
            need("index", all(i["refs"] for i in entries), "an inode without names")
            self.inodes = {i["name"]: i for i in entries}
        inode = self.inodes.get(e["link_id"].hex().encode())
        need("omission", inode is not None, "the inode of a link is gone")
        need("index", inode["type"] == e["kind"], "type of an inode")
        need("index", e["ref"] in inode["refs"], "an inode does not count one of its names")
        return inode

    def entry(self, path, e):
        need("index", not e["refs"], "an inode outside the links directory")
        if e["type"] == 8:
            try:
                e = self.resolve(e)
            except Bad as bad:
                self.failures.append((path, bad))
                return False
            first = self.named.setdefault(e["name"], path)
            if first != path and self.extract:
                os.link(*(os.path.join(os.fsencode(self.extract), *p) for p in (first, path)), follow_symlinks=False)
                extract, self.extract = self.extract, None
                try:
                    return self.entry(path, {**e, "refs": []})
                finally:
                    self.extract = extract
            e = {**e, "refs": []}
        if e["type"] == 1:
            try:
                self.file(path, e)
            except Bad as bad:
                self.failures.append((path, bad))
            return False
        self.others.append((path, e))
        out = self.extract and os.path.join(os.fsencode(self.extract), *path)
        if out and e["type"] == 2:
            os.makedirs(out, exist_ok=True)
        if out and e["type"] == 3:
            os.symlink(e["target"], out)
        return e["type"] == 2

    def file(self, path, e):
        data = self.store.get(e["key"] or object_key(e["file_id"]))
        need("omission", data is not None, "an object is gone")
        m = open_object(self.v, e, data)
        digest, size = hashlib.sha256(), 0
        out = None
        if self.extract:
            # A name from the index has no slash and is not "." or "..", so it stays inside.
            out = open(os.path.join(os.fsencode(self.extract), *path), "xb")
        try:
            for piece in read_object(self.v, m, data):
                digest.update(piece)
                size += len(piece)
                if out:
                    out.write(piece)
        finally:
            if out:
                out.close()
        need("size", size == m["size"], "size")
        need("manifest", m["content"] in (None, digest.digest()), "content hash")
        self.files.append((path, size, digest.hexdigest(), e))


def show(path):
    """A path for people: whatever is not UTF-8 or could disturb a terminal is escaped."""
    text = "/".join(p.decode(errors="backslashreplace") for p in path) or "/"
    return "".join(c if unicodedata.category(c)[0] != "C" else c.encode("unicode_escape").decode() for c in text)


def bucket(args):
    from read_v1_store import open_store

    store = open_store(args.store)
    data = store.get(".smpfs/volume")
    need("omission", data is not None, "the volume config is gone")
    config = parse_config(data)
    if args.recovery_file:
        with open(args.recovery_file, encoding="utf-8") as f:
            v = unlock(config, 2, recovery_code(f.read()))
    else:
        with open(args.passphrase_file, "rb") as f:
            secret = f.read()
        secret = secret[:-1] if secret.endswith(b"\n") else secret
        v = unlock(config, 1, secret[:-1] if secret.endswith(b"\r") else secret)
    if args.extract:
        os.makedirs(args.extract, exist_ok=True)
    walk = Walk(v, store, args.extract)
    walk.run(config["root"])
    report(config, walk, args.json)
    return 1 if walk.failures else 0


def report(config, walk, as_json):
    files = sorted(walk.files)
    if as_json:
        listed = [
            {"path": show(p), "path_hex": b"/".join(p).hex(), "size": n, "sha256": d, "mode": e["mode"], "mtime": e["mtime"]}
            for p, n, d, e in files
        ]
        failures = [{"path": show(p), "class": b.cls, "what": str(b)} for p, b in walk.failures]
        print(json.dumps({"volume": config["name"], "files": listed, "failures": failures}, indent=1))
        return
    print(f"volume {config['volume'].hex()} \"{config['name']}\" config generation {config['generation']}")
    for path, size, digest, _ in files:
        print(f"{digest} {size:>12} {show(path)}")
    kinds = {2: "directory", 3: "symlink", 4: "fifo", 5: "socket", 6: "character device", 7: "block device"}
    for path, e in sorted(walk.others, key=lambda x: x[0]):
        print(f"{kinds[e['type']]:<64} {stat.filemode(e['mode'])[1:]:>12} {show(path)}")
    for path, bad in walk.failures:
        print(f"FAILED {show(path)}: {bad}")
    print(f"{len(files)} files, {len(walk.others)} other entries, {len(walk.failures)} failures")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    b = commands.add_parser("bucket", help="verify and decrypt a whole bucket")
    b.add_argument("store")
    secret = b.add_mutually_exclusive_group(required=True)
    secret.add_argument("--passphrase-file")
    secret.add_argument("--recovery-file")
    b.add_argument("--extract", metavar="DIR", help="write the files below DIR")
    b.add_argument("--json", action="store_true")
    commands.add_parser("vectors", help="check golden and negative vectors").add_argument("dir")
    args = parser.parse_args()
    try:
        if args.command == "bucket":
            return bucket(args)
        from read_v1_vectors import vectors

        return vectors(args.dir)
    except (Bad, Locked) as e:
        print(f"FAILED: {e}")
        return 1


if __name__ == "__main__":
    sys.modules["read_v1"] = sys.modules["__main__"]
    sys.exit(main())
