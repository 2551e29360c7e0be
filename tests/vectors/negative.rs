//! Changed objects, configs and index objects, each with the failure class that a reader must give.
//!
//! A change below a signature is signed again with the owner's key (and a changed manifest or payload sealed again), so that it
//! reaches the check it is meant for. Vectors are kept as patches of a golden file, so that a reader needs no key to make them.

use super::world::{Object, World, fixed};
use smpfs::crypto::hash::sha256;
use smpfs::crypto::mac::hmac_sha256;
use smpfs::crypto::sealed_blob;
use smpfs::format::Failure;
use smpfs::format::index::DirRef;
use smpfs::format::names::Place;

/// One negative vector.
pub struct Case {
    pub name: String,
    pub bytes: Vec<u8>,
    pub class: Failure,
}

fn case(name: impl Into<String>, bytes: Vec<u8>, class: Failure) -> Case {
    Case { name: name.into(), bytes, class }
}

fn set(bytes: &[u8], at: usize, value: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    out[at..at + value.len()].copy_from_slice(value);
    out
}

fn flip(bytes: &[u8], at: usize) -> Vec<u8> {
    set(bytes, at, &[bytes[at] ^ 1])
}

/// Signs a changed trailer again.
fn resign(world: &World, object: &[u8]) -> Vec<u8> {
    let start = object.len() - 512;
    let signature = world.keys.owner().sign(&[b"smpfs/v1/trailer\0", &object[start..start + 448]]);
    set(object, object.len() - 64, &signature)
}

/// Puts the changed plaintext of a manifest into an object: sealed, hashed and signed again.
fn remanifest(world: &World, o: &Object, plain: &[u8]) -> Vec<u8> {
    let context =
        [b"smpfs/v1/manifest\0", &world.params.volume_id.0[..], &o.expect.file_id.0, &o.expect.generation.to_be_bytes()].concat();
    let sealed = sealed_blob::seal(o.expect.file_key.expose(), &context, &fixed("negative salt"), plain);
    with_manifest(world, o, &sealed)
}

fn with_manifest(world: &World, o: &Object, sealed: &[u8]) -> Vec<u8> {
    let trailer_at = o.bytes.len() - 512;
    let old_len = sealed_blob::sealed_len(384 + 80 * o.manifest.records.len());
    let mut out = o.bytes[..trailer_at - old_len].to_vec();
    out.extend_from_slice(sealed);
    let trailer = set(&o.bytes[trailer_at..], 80, &(sealed.len() as u64).to_be_bytes());
    out.extend_from_slice(&set(&trailer, 160, &sha256(&[sealed])));
    resign(world, &out)
}

/// Negative objects made from `o`, which has one stored segment and generation 3. The index entry stays what it is, but for the
/// generation, which is one lower where the change would otherwise be found as `fork`.
pub fn objects(world: &World, o: &Object) -> Vec<Case> {
    use Failure::*;
    let b = &o.bytes;
    let t = b.len() - 512;
    let mut out = vec![
        case("empty object", vec![], Length),
        case("one byte less than an empty file", b[..1095].to_vec(), Length),
        case("header magic", flip(b, 0), Magic),
        case("header version", set(b, 8, &[0, 2]), Version),
        case("header suite unknown", set(b, 10, &[0, 3]), Suite),
        case("header suite not the volume's", set(b, 10, &[0, 2]), Suite),
        case("header chunk_log2 too small", set(b, 12, &[13]), Params),
        case("header chunk_log2 not the volume's", set(b, 12, &[15]), Params),
        case("header seg_log2 too large", set(b, 13, &[11]), Params),
        case("header flags", set(b, 14, &[0, 1]), Params),
        case("header volume id", flip(b, 16), Identity),
        case("header file id", flip(b, 32), Identity),
        case("header reserved", flip(b, 127), Params),
        case("trailer magic", flip(b, t), Magic),
        case("trailer version", set(b, t + 8, &[0, 2]), Version),
        case("trailer suite unknown", set(b, t + 10, &[0, 0]), Suite),
        case("trailer suite not the volume's", set(b, t + 10, &[0, 2]), Suite),
        case("trailer chunk_log2 too large", set(b, t + 12, &[21]), Params),
        case("trailer seg_log2 not the volume's", set(b, t + 13, &[5]), Params),
        case("trailer flags", set(b, t + 14, &[0x80, 0]), Params),
        case("trailer reserved", flip(b, t + 447), Params),
        case("trailer generation zero", set(b, t + 64, &[0; 8]), Params),
        case("trailer generation one with a predecessor", set(b, t + 64, &1u64.to_be_bytes()), Params),
        case("trailer without predecessor", set(b, t + 192, &[0; 32]), Params),
        case("one byte cut off", b[..b.len() - 1].to_vec(), Magic),
        case("one byte more", [b, &[0][..]].concat(), Magic),
        case("signature", flip(b, b.len() - 1), Signature),
        case("unknown writer", resign(world, &set(b, t + 92, &[0, 0, 0, 1])), Signature),
        case("a header inserted", [&b[..128], b].concat(), ManifestHash),
        case("a byte of manifest", flip(b, t - 1), ManifestHash),
    ];
    for (name, at) in
        [("file id", 32), ("manifest_off", 72), ("manifest_len", 80), ("epoch", 88), ("wrapped", 224), ("bind", 328)]
    {
        out.push(case(format!("trailer {name}, not signed again"), flip(b, t + at), Signature));
    }
    let signed = |at: usize, value: &[u8]| resign(world, &set(b, t + at, value));
    out.push(case("trailer volume id, signed again", signed(16, &[0; 16]), Identity));
    out.push(case("trailer file id, signed again", signed(32, &[0; 32]), Identity));
    out.push(case("older generation", signed(64, &2u64.to_be_bytes()), Rollback));
    out.push(case("same generation, other trailer", signed(328, &[0; 32]), Fork));
    // From here on a higher generation, which is accepted as such.
    let newer = |object: &[u8]| resign(world, &set(object, object.len() - 512 + 64, &4u64.to_be_bytes()));
    let signed = |at: usize, value: &[u8]| newer(&set(b, t + at, value));
    out.push(case("header hash", signed(96, &[0; 32]), HeaderHash));
    out.push(case("manifest offset", signed(72, &(t as u64).to_be_bytes()), ManifestHash));
    out.push(case("manifest offset overflows", signed(72, &u64::MAX.to_be_bytes()), ManifestHash));
    out.push(case("manifest length", signed(80, &[0; 8]), ManifestHash));
    out.push(case("manifest hash", signed(160, &[0; 32]), ManifestHash));
    out.push(case("epoch unknown", signed(88, &3u32.to_be_bytes()), KeyWrap));
    out.push(case("epoch of another key", signed(88, &1u32.to_be_bytes()), KeyWrap));
    out.push(case("wrapped key", newer(&flip(b, t + 327)), KeyWrap));
    out.push(case("generation the manifest was not made for", signed(64, &4u64.to_be_bytes()), Manifest));
    out
}

/// Negative manifests: the generation stays, and the index entry is made to match (its trailer hash is the new one's).
pub fn manifests(world: &World, o: &Object) -> Vec<Case> {
    use Failure::*;
    let plain = o.manifest.encode().unwrap();
    let r = 384;
    let edit = |at: usize, value: &[u8]| remanifest(world, o, &set(&plain, at, value));
    let trailer_at = o.bytes.len() - 512;
    let sealed_at = trailer_at - sealed_blob::sealed_len(plain.len());
    let sealed = &o.bytes[sealed_at..trailer_at];
    vec![
        case("manifest salt", with_manifest(world, o, &flip(sealed, 0)), Manifest),
        case("manifest commitment", with_manifest(world, o, &flip(sealed, 24)), Manifest),
        case("manifest ciphertext", with_manifest(world, o, &flip(sealed, 60)), Manifest),
        case("manifest cut short", with_manifest(world, o, &sealed[..sealed.len() - 1]), Manifest),
        case("manifest of 383 bytes", remanifest(world, o, &plain[..383]), Manifest),
        case("manifest without its record", remanifest(world, o, &plain[..r]), Manifest),
        case("manifest with a byte behind it", remanifest(world, o, &[&plain[..], &[0]].concat()), Manifest),
        case("mtime nanoseconds", edit(16, &1_000_000_000u32.to_be_bytes()), Manifest),
        case("ctime nanoseconds", edit(28, &u32::MAX.to_be_bytes()), Manifest),
        case("mode", edit(32, &0o10000u32.to_be_bytes()), Manifest),
        case("n", edit(36, &2u64.to_be_bytes()), Manifest),
        case("n huge", edit(36, &u64::MAX.to_be_bytes()), Manifest),
        case("manifest flags", edit(44, &5u32.to_be_bytes()), Manifest),
        case("content hash without its flag", edit(44, &0u32.to_be_bytes()), Manifest),
        case("hole flag without a hole", edit(44, &3u32.to_be_bytes()), Manifest),
        case("name length", edit(96, &256u16.to_be_bytes()), Manifest),
        case("name not zero-filled", edit(352, &[1]), Manifest),
        case("manifest reserved", edit(383, &[1]), Manifest),
        case("record written later", edit(r + 64, &4u64.to_be_bytes()), Manifest),
        case("record written never", edit(r + 64, &0u64.to_be_bytes()), Manifest),
        case("record flags", edit(r + 72, &2u64.to_be_bytes()), Manifest),
        case("hole with a secret", edit(r + 72, &1u64.to_be_bytes()), Manifest),
        case("size of another number of segments", edit(0, &0u64.to_be_bytes()), Size),
        case("size one less", edit(0, &(o.size - 1).to_be_bytes()), Size),
        case("size beyond the limit", edit(0, &u64::MAX.to_be_bytes()), Size),
        case("segment root", edit(r + 32, &[0; 32]), BodyRoot),
        case("body root", resign(world, &set(&o.bytes, trailer_at + 128, &[0; 32])), BodyRoot),
        case("segment secret", edit(r, &[0; 32]), Chunk),
    ]
}

/// Changes below the root of an object with one segment of two chunks, in bytes that come in one request.
pub fn bodies(world: &World, o: &Object) -> Vec<Case> {
    let full = 128 + world.params.geometry.chunk_stored() as usize;
    let body_end = 128 + o.size as usize + 2 * 16;
    let at = |name: &str, at: usize| case(name, flip(&o.bytes, at), Failure::Leaf);
    vec![
        at("first byte of ciphertext", 128),
        at("tag of the first chunk", full - 1),
        at("second chunk", full),
        at("foot: segment number", body_end + 7),
        at("foot: number of chunks", body_end + 11),
        at("foot: reserved", body_end + 15),
        at("leaf of the first chunk", body_end + 16),
        at("leaf of the second chunk", body_end + 16 + 63),
    ]
}

/// Negative configs; those that need a key to be noticed are unlocked with the passphrase.
pub fn configs(world: &World) -> Vec<Case> {
    use Failure::*;
    let good = world.config();
    let body = good.len() - 96;
    let sign = |bytes: Vec<u8>| {
        let signature = world.keys.owner().sign(&[b"smpfs/v1/volume\0", &bytes[..bytes.len() - 64]]);
        set(&bytes, bytes.len() - 64, &signature)
    };
    // MAC and signature are made again, so that only the changed field is wrong.
    let edit = |at: usize, value: &[u8]| {
        let bytes = set(&good, at, value);
        let mac_key =
            smpfs::crypto::kdf::hkdf_sha512::<32>(&world.params.volume_id.0, world.vrk.expose(), &[b"smpfs/v1/key\0config-mac"]);
        let mac = hmac_sha256(&*mac_key, &[b"smpfs/v1/volume\0", &bytes[..body]]);
        sign(set(&bytes, body, &mac))
    };
    let name_len = usize::from(good[101]);
    let epochs_at = 102 + name_len;
    let epochs_len = u32::from_be_bytes(good[epochs_at..epochs_at + 4].try_into().unwrap()) as usize;
    let slots_at = epochs_at + 4 + epochs_len;
    let slot = slots_at + 1;
    let other = smpfs::crypto::sign::SigningKey::from_seed(&[9; 32]);
    let mut stolen = set(&good, 44, &other.public());
    let at = stolen.len() - 64;
    let signature = other.sign(&[b"smpfs/v1/volume\0", &stolen[..at]]);
    stolen[at..].copy_from_slice(&signature);
    vec![
        case("config empty", vec![], Length),
        case("config cut short", good[..good.len() - 1].to_vec(), Length),
        case("config with a byte behind it", [&good[..], &[0]].concat(), Length),
        case("config name too long", edit(100, &[1, 0]), Params),
        case("config epochs longer than the config", edit(epochs_at, &u32::MAX.to_be_bytes()), Length),
        case("config magic", edit(0, &[0]), Magic),
        case("config version", edit(8, &[0, 2]), Version),
        case("config mode", edit(10, &[3]), Params),
        case("config reserved", edit(11, &[1]), Params),
        case("config suite", edit(12, &[0, 7]), Suite),
        case("config chunk_log2", edit(14, &[21]), Params),
        case("config seg_log2", edit(15, &[3]), Params),
        case("config flags", edit(16, &[0, 0, 0, 1]), Params),
        case("config generation", edit(36, &[0; 8]), Params),
        case("config name is not UTF-8", edit(102, &[0xff]), Params),
        case("config without slots", edit(slots_at, &[0]), Params),
        case("config with 17 slots", edit(slots_at, &[17]), Params),
        case("slot kind", edit(slot, &[3]), Params),
        case("slot memory too small", edit(slot + 1, &65_535u32.to_be_bytes()), Params),
        case("slot memory too large", edit(slot + 1, &4_194_305u32.to_be_bytes()), Params),
        case("slot passes", edit(slot + 5, &65u32.to_be_bytes()), Params),
        case("slot lanes", edit(slot + 9, &17u32.to_be_bytes()), Params),
        case("recovery slot with a cost", edit(slot + 149 + 4, &[1]), Params),
        case("config signature", flip(&good, good.len() - 1), Signature),
        case("config changed, not signed again", flip(&good, 20), Signature),
        case("config owner is no key", set(&good, 44, &[0; 32]), Signature),
        case("config signed by another owner", stolen, Mac),
        case("config changed, signed again, old MAC", sign(flip(&good, 92)), Mac),
        case("config MAC", sign(flip(&good, body)), Mac),
        case("config epochs", edit(epochs_at + 4, &[good[epochs_at + 4] ^ 1]), KeyWrap),
    ]
}

fn resign_index(world: &World, mut bytes: Vec<u8>) -> Vec<u8> {
    let at = bytes.len() - 64;
    let signature = world.keys.owner().sign(&[b"smpfs/v1/index\0", &bytes[..at]]);
    bytes[at..].copy_from_slice(&signature);
    bytes
}

/// Seals and signs a payload, whatever is in it, for a place of a directory.
pub fn seal_payload(world: &World, dir: &DirRef, place: Place, payload: &[u8]) -> Vec<u8> {
    let volume = &world.params.volume_id;
    let context =
        [b"smpfs/v1/index\0", &volume.0[..], &dir.dir_id.0, &place.epoch.to_be_bytes(), &place.slot.to_be_bytes()].concat();
    let blob = sealed_blob::seal(dir.dir_key.expose(), &context, &fixed("negative salt"), payload);
    let head = [b"SMPDIR\x01\x0a\0\x01\0\0\0\0\0\0", &volume.0[..], &(blob.len() as u32).to_be_bytes()].concat();
    resign_index(world, [&head[..], &blob, &[0; 64]].concat())
}

/// Changes around the blob of an index object, which is sound.
pub fn indexes(world: &World, good: &[u8]) -> Vec<Case> {
    let index = |name: &str, bytes: Vec<u8>| case(format!("index {name}"), bytes, Failure::Index);
    let signed = |name: &str, at: usize| index(name, resign_index(world, flip(good, at)));
    vec![
        index("empty", vec![]),
        signed("magic", 0),
        signed("version", 9),
        signed("reserved", 11),
        signed("writer", 15),
        signed("volume", 16),
        signed("blob length", 35),
        signed("salt", 36),
        signed("commitment", 60),
        signed("ciphertext", 200),
        index("ciphertext, not signed again", flip(good, 200)),
        index("signature", flip(good, good.len() - 1)),
        index("cut short", good[..good.len() - 1].to_vec()),
        index("with a byte behind it", [good, &[0][..]].concat()),
    ]
}

/// Changes of an index object's payload; `name_len` is the length of the first entry's name, a block device.
pub fn payloads(payload: &[u8], name_len: usize) -> Vec<Case> {
    let name_at = 56 + 2;
    let attributes = name_at + name_len;
    let xattrs = attributes + 11 + 48 + 8;
    let fields: [(&str, usize, &[u8]); 28] = [
        ("kind zero", 0, &[0]),
        ("kind of a shard", 0, &[2]),
        ("flags", 1, &[2]),
        ("shard bits with entries", 2, &[1]),
        ("shard bits too many", 2, &[17]),
        ("reserved byte", 3, &[1]),
        ("slot of a head", 8, &[0, 0, 0, 1]),
        ("generation zero", 12, &[0; 8]),
        ("generation one with a predecessor", 12, &[0, 0, 0, 0, 0, 0, 0, 1]),
        ("without predecessor", 20, &[0; 32]),
        ("entry count too large", 52, &[0xff; 4]),
        ("entry count too small", 52, &[0; 4]),
        ("entry name empty", 56, &[0, 0]),
        ("entry name too long", 56, &[1, 0]),
        ("entry name with a slash", name_at, b"/"),
        ("entry name with a NUL", name_at, b"\0"),
        ("entry name out of order", name_at, b"z"),
        ("entry type", attributes, &[9]),
        ("entry type zero", attributes, &[0]),
        ("directory with several names", attributes, &[0x82]),
        ("link with several names", attributes, &[0x88]),
        ("link with attributes", attributes, &[8]),
        ("entry mode", attributes + 1, &[0x10, 0]),
        ("entry nanoseconds", attributes + 11 + 8, &[0xff; 4]),
        ("more extended attributes than bytes", xattrs, &[0xff, 0xff]),
        ("extended attribute without name", xattrs + 2, &[0]),
        ("extended attributes out of order", xattrs + 2 + 1 + 5, b"z"),
        ("extended attribute too large", xattrs + 2 + 1 + 6, &[0, 1, 0, 1]),
    ];
    let mut out: Vec<Case> = fields
        .into_iter()
        .map(|(name, at, value)| case(format!("index {name}"), set(payload, at, value), Failure::Index))
        .collect();
    let index = |name: &str, bytes: Vec<u8>| case(format!("index {name}"), bytes, Failure::Index);
    out.push(index("padded too far", [payload, &[0; 256]].concat()));
    out.push(index("padded too little", payload[..payload.len() - 1].to_vec()));
    out.push(index("padding in use", set(payload, payload.len() - 1, &[1])));
    out.push(index("without fixed fields", payload[..55].to_vec()));
    out
}
