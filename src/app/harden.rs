//! What the process does to itself before it holds a secret: no core dumps, no reading of its memory by other processes.

use crate::error::{Error, Kind, Result};
use nix::sys::prctl::set_dumpable;
use nix::sys::resource::{Resource, setrlimit};

/// Sets both. Core dumps off for this process and the ones it starts (RLIMIT_CORE 0); not dumpable (PR_SET_DUMPABLE 0), so that no
/// process of the same user may attach or read `/proc/PID/mem`.
pub fn harden() -> Result<()> {
    let refused = |what: &'static str| move |e: nix::errno::Errno| Error::with_source(Kind::NotPermitted, what, e);
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(refused("core dumps cannot be switched off"))?;
    set_dumpable(false).map_err(refused("the process cannot be made non-dumpable"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::prctl::get_dumpable;
    use nix::sys::resource::getrlimit;

    #[test]
    fn no_core_dump_and_no_tracing_by_others() {
        harden().unwrap();
        assert_eq!(getrlimit(Resource::RLIMIT_CORE).unwrap(), (0, 0));
        assert!(!get_dumpable().unwrap());
    }
}
