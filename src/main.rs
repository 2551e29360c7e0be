//! The `smpfs` binary: everything is in the library.

fn main() -> std::process::ExitCode {
    smpfs::app::main()
}
