//! Append-only files of sealed records: everything that smpfs keeps on the local disk and may need after a crash.
