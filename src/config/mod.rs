//! File, environment and command line become one validated Config.
