//! Erasing local traces.
