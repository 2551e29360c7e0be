//! What programs do with hard links and exchanges, through the real kernel.

use super::world::*;
use std::fs;
use std::os::unix::fs::MetadataExt;

#[test]
fn what_programs_link_is_linked_on_another_machine() {
    need_mounts!("what_programs_link_is_linked_on_another_machine");
    for mode in ["zero-knowledge", "standard"] {
        let mut world = World::dir();
        world.init(&["--mode", mode]);
        let mount = world.mount(&[]);
        let script = r#"
            set -e
            cd "$1"
            mkdir -p tree/deep && echo one > tree/one && echo two > tree/deep/two && ln -s one tree/soft && mkfifo tree/pipe
            cp -al tree copy
            ln tree/one three && echo more >> three
            test "$(stat -c %h tree/one)" = 3 && test "$(cat copy/one)" = "$(printf 'one\nmore')"
            test "$(stat -c %i tree/deep/two)" = "$(stat -c %i copy/deep/two)"
            mv copy/deep/two moved && rm tree/deep/two
            test "$(stat -c %h moved)" = 1 && test "$(cat moved)" = two
            ! ln tree dir 2>/dev/null
        "#;
        shell(script, &[&world.mnt()]).ok();
        if std::process::Command::new("git").arg("--version").output().is_ok_and(|o| o.status.success()) {
            let script = r#"
                set -e
                cd "$1"
                git init -q repo && cd repo && echo x > x && git add x
                git -c user.name=n -c user.email=e commit -qm one
                cd .. && git clone -q --local repo clone && cd clone && git fsck --strict >/dev/null 2>&1
            "#;
            shell(script, &[&world.mnt()]).ok();
        }
        let exchange = |a: &str, b: &str| {
            use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
            renameat2(AT_FDCWD, &world.file(a), AT_FDCWD, &world.file(b), RenameFlags::RENAME_EXCHANGE).unwrap();
        };
        exchange("moved", "copy/deep");
        exchange("three", "copy/deep");
        mount.unmount();
        world.become_another_machine("elsewhere");
        let mount = world.mount(&["--read-only"]);
        let inode = |path: &str| fs::symlink_metadata(world.file(path)).map(|m| (m.ino(), m.nlink())).unwrap();
        assert_eq!(inode("tree/one"), inode("copy/one"));
        assert_eq!((inode("copy/deep"), inode("copy/deep").1), (inode("tree/one"), 3));
        assert_eq!((inode("tree/soft"), inode("tree/pipe")), (inode("copy/soft"), inode("copy/pipe")));
        assert_eq!(inode("tree/soft").1, 2);
        assert_eq!(fs::read_to_string(world.file("copy/deep")).unwrap(), "one\nmore\n");
        assert_eq!(fs::read_to_string(world.file("three")).unwrap(), "two\n");
        assert!(world.file("moved").is_dir());
        mount.unmount();
    }
}
