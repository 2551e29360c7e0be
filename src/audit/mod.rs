//! The tamper-evident audit log and the quarantine.
