//! Slots of the volume config: each opens the volume root key with one passphrase or recovery code (FORMAT.md, section 5).

use super::failure::Failure;
use super::keys::{unwrap, wrap};
use super::wire::{Reader, Writer};
use super::{Salt, Wrapped};
use crate::crypto::hash::sha256;
use crate::crypto::kdf::{Argon2Cost, argon2id, hkdf_sha512};
use crate::crypto::secmem::SecretKey;
use crate::error::{Kind, Result, fail};
use crate::types::VolumeId;
use data_encoding::BASE32_NOPAD;
use zeroize::Zeroizing;

/// Bytes of a slot in the config.
pub const SLOT_LEN: usize = 149;
/// Slots of a volume at most.
pub const MAX_SLOTS: usize = 16;
/// Characters of a recovery code without dashes.
const CODE_CHARS: usize = 56;

/// How a slot's key is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotKind {
    /// Argon2id of a passphrase, at this cost.
    Passphrase(Argon2Cost),
    /// HKDF of a recovery code.
    Recovery,
}

/// What a person unlocks a volume with.
pub enum Credential<'a> {
    /// A passphrase: UTF-8 bytes; a line end behind it is ignored.
    Passphrase(&'a [u8]),
    /// A recovery code.
    Recovery(&'a RecoveryCode),
}

/// One slot of the config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// How its key is made.
    pub kind: SlotKind,
    /// Salt of the derivation.
    pub salt: [u8; 32],
    /// The volume root key under the slot's key.
    pub wrapped: Wrapped,
}

impl SlotKind {
    fn numbers(self) -> (u8, [u32; 3]) {
        match self {
            SlotKind::Passphrase(c) => (1, [c.m_kib, c.t, c.p]),
            SlotKind::Recovery => (2, [0; 3]),
        }
    }

    fn from_numbers(kind: u8, [m_kib, t, p]: [u32; 3]) -> Result<SlotKind> {
        let cost = Argon2Cost { m_kib, t, p };
        match kind {
            1 if cost.allowed() => Ok(SlotKind::Passphrase(cost)),
            1 => Failure::Params.fail("a passphrase slot asks for a cost outside the accepted bounds"),
            2 if [m_kib, t, p] == [0; 3] => Ok(SlotKind::Recovery),
            2 => Failure::Params.fail("a recovery slot has a cost"),
            _ => Failure::Params.fail("a slot of unknown kind; a newer smpfs may have written this"),
        }
    }

    fn fits(self, credential: &Credential<'_>) -> bool {
        matches!(
            (self, credential),
            (SlotKind::Passphrase(_), Credential::Passphrase(_)) | (SlotKind::Recovery, Credential::Recovery(_))
        )
    }
}

/// Slot key and slot context.
fn derive(kind: SlotKind, salt: &[u8; 32], volume: &VolumeId, credential: &Credential<'_>) -> Result<(SecretKey, Vec<u8>)> {
    let key = match (kind, credential) {
        (SlotKind::Passphrase(cost), Credential::Passphrase(bytes)) => argon2id(without_line_end(bytes), salt, cost)?,
        (SlotKind::Recovery, Credential::Recovery(code)) => {
            hkdf_sha512::<32>(salt, code.0.expose(), &[b"smpfs/v1/recovery\0", &volume.0])
        }
        _ => return fail(Kind::Bug, "a slot was given a credential of another kind"),
    };
    let (number, cost) = kind.numbers();
    let mut w = Writer::with_capacity(96);
    w.bytes(b"smpfs/v1/slot\0").bytes(&volume.0).u8(number);
    w.u32(cost[0]).u32(cost[1]).u32(cost[2]).bytes(salt);
    Ok((SecretKey::new(&key), w.public()))
}

fn without_line_end(bytes: &[u8]) -> &[u8] {
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    bytes.strip_suffix(b"\r").unwrap_or(bytes)
}

impl Slot {
    /// A slot that opens `vrk` with `credential`. `cost` matters for passphrases only; both salts are fresh randomness.
    pub fn seal(
        credential: &Credential<'_>,
        cost: Argon2Cost,
        volume: &VolumeId,
        vrk: &SecretKey,
        salt: [u8; 32],
        wrap_salt: &Salt,
    ) -> Result<Slot> {
        let kind = match credential {
            Credential::Passphrase(_) => SlotKind::Passphrase(cost),
            Credential::Recovery(_) => SlotKind::Recovery,
        };
        let (key, context) = derive(kind, &salt, volume, credential)?;
        Ok(Slot { kind, salt, wrapped: wrap(&key, &context, wrap_salt, vrk) })
    }

    /// The volume root key, or `None` when the credential is of another kind or does not open this slot.
    pub(super) fn open(&self, credential: &Credential<'_>, volume: &VolumeId) -> Result<Option<SecretKey>> {
        if !self.kind.fits(credential) {
            return Ok(None);
        }
        let (key, context) = derive(self.kind, &self.salt, volume, credential)?;
        Ok(unwrap(&key, &context, &self.wrapped).ok())
    }

    pub(super) fn write(&self, w: &mut Writer) {
        let (kind, cost) = self.kind.numbers();
        w.u8(kind).u32(cost[0]).u32(cost[1]).u32(cost[2]).bytes(&self.salt).bytes(&self.wrapped);
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Result<Slot> {
        let kind = SlotKind::from_numbers(r.u8()?, [r.u32()?, r.u32()?, r.u32()?])?;
        Ok(Slot { kind, salt: r.array()?, wrapped: r.array()? })
    }
}

/// A recovery code: 32 random bytes, shown to a person once.
pub struct RecoveryCode(SecretKey);

impl RecoveryCode {
    /// The code of these random bytes.
    pub fn new(random: &[u8; 32]) -> Self {
        RecoveryCode(SecretKey::new(random))
    }

    /// As it is shown: 14 groups of four characters, joined by dashes. Of typing errors, the check bytes in it
    /// miss one in 16 million.
    pub fn text(&self) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new([0; 35]);
        bytes[..32].copy_from_slice(self.0.expose());
        bytes[32..].copy_from_slice(&self.check());
        let plain = Zeroizing::new(BASE32_NOPAD.encode(&*bytes));
        let mut text = Zeroizing::new(String::with_capacity(CODE_CHARS + CODE_CHARS / 4));
        for (i, c) in plain.chars().enumerate() {
            if i > 0 && i % 4 == 0 {
                text.push('-');
            }
            text.push(c);
        }
        text
    }

    /// Reads a code as typed: case, spaces and dashes do not matter. `Invalid` when it is no code or mistyped.
    pub fn parse(text: &str) -> Result<RecoveryCode> {
        let mut plain = Zeroizing::new(String::with_capacity(CODE_CHARS));
        for c in text.chars().filter(|c| !c.is_whitespace() && *c != '-') {
            if plain.len() >= CODE_CHARS || !c.is_ascii_alphanumeric() {
                return fail(Kind::Invalid, "a recovery code has 56 letters and digits in 14 groups");
            }
            plain.push(c.to_ascii_uppercase());
        }
        let bytes = match BASE32_NOPAD.decode(plain.as_bytes()) {
            Ok(bytes) if bytes.len() == 35 => Zeroizing::new(bytes),
            _ => return fail(Kind::Invalid, "a recovery code has 56 characters, letters and the digits 2 to 7"),
        };
        let code = RecoveryCode(SecretKey::from_fn(|out| out.copy_from_slice(&bytes[..32])));
        if code.check() != bytes[32..] {
            return fail(Kind::Invalid, "the recovery code is mistyped: its check characters do not match");
        }
        Ok(code)
    }

    fn check(&self) -> [u8; 3] {
        let hash = sha256(&[b"smpfs/v1/recovery-check\0", self.0.expose()]);
        [hash[0], hash[1], hash[2]]
    }
}

impl std::fmt::Debug for RecoveryCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RecoveryCode(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recovery_codes_survive_people() {
        let code = RecoveryCode::new(&[0x9c; 32]);
        let text = code.text();
        assert_eq!((text.len(), text.split('-').count()), (56 + 13, 14));
        let typed = format!("  {} ", text.to_lowercase().replace('-', " "));
        assert_eq!(RecoveryCode::parse(&typed).unwrap().0, code.0);
        let mut wrong = text.to_string();
        wrong.replace_range(0..1, if wrong.starts_with('A') { "B" } else { "A" });
        for bad in [&wrong, &text[..20], "", &format!("{}A", *text), &text.replace('-', "1"), "ü"] {
            assert_eq!(RecoveryCode::parse(bad).unwrap_err().kind(), Kind::Invalid);
        }
    }

    #[test]
    fn a_line_end_is_no_part_of_a_passphrase() {
        for typed in [&b"pass"[..], b"pass\n", b"pass\r\n"] {
            assert_eq!(without_line_end(typed), b"pass");
        }
        assert_eq!(without_line_end(b"pass \n\n"), b"pass \n");
    }
}
