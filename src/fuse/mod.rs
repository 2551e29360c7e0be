//! fuser callbacks to Ops.
