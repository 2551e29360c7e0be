//! Extended attributes: errno, sizes, kinds.

use crate::world::{WHO, World};
use smpfs::ops::Ops;
use smpfs::types::{Mode, Suite};

#[test]
fn extended_attributes_have_the_errno_and_sizes_of_the_manual() {
    let world = World::new(Mode::ZeroKnowledge, Suite::Aes256Gcm);
    let mount = world.fresh();
    mount.put("f", b"x");
    let ino = mount.ino("f").unwrap();
    let set = |name: &str, value: &[u8], flags: i32| {
        mount.wait(mount.fs.setxattr(WHO, ino, name.as_bytes(), value, flags)).err().map_or(0, |e| e.errno())
    };
    assert_eq!(set("user.a", b"1", libc::XATTR_CREATE), 0);
    assert_eq!(set("user.a", b"1", libc::XATTR_CREATE), libc::EEXIST);
    assert_eq!(set("user.none", b"1", libc::XATTR_REPLACE), libc::ENODATA);
    assert_eq!(set("user.a", &[7; 60_000], libc::XATTR_REPLACE), 0);
    // All of them together hold 64 KiB.
    assert_eq!(set("user.b", &[7; 6_000], 0), libc::ENOSPC);
    assert_eq!(set("user.b", &[7; 70_000], 0), libc::ERANGE);
    for bare in ["user.", "trusted.", "security."] {
        assert_eq!(set(bare, b"1", 0), libc::EINVAL, "{bare}");
    }
    for other in ["system.posix_acl_access", "odd.x", "user"] {
        assert_eq!(set(other, b"1", 0), libc::EOPNOTSUPP, "{other}");
    }
    let get = |name: &str| mount.wait(mount.fs.getxattr(WHO, ino, name.as_bytes()));
    assert_eq!(get("user.a").unwrap().len(), 60_000);
    assert_eq!(get("user.b").unwrap_err().errno(), libc::ENODATA);
    assert_eq!(mount.wait(mount.fs.removexattr(WHO, ino, b"user.b")).unwrap_err().errno(), libc::ENODATA);
    let link = mount.wait(mount.fs.symlink(WHO, 1, b"link", b"f")).unwrap().attr.ino;
    assert_eq!(mount.wait(mount.fs.setxattr(WHO, link, b"user.a", b"1", 0)).unwrap_err().errno(), libc::EPERM);
    mount.wait(mount.fs.setxattr(WHO, link, b"trusted.a", b"1", 0)).unwrap();
    mount.fs.forget(ino, 1);
    mount.fs.forget(link, 1);
    mount.unmount();
    let other = world.fresh();
    let ino = other.ino("f").unwrap();
    assert_eq!(other.wait(other.fs.getxattr(WHO, ino, b"user.a")).unwrap(), vec![7; 60_000]);
    other.unmount();
}
