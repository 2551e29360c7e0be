//! The control tree: a virtual directory `.smpfs` in the root of a mount, in front of another [`Ops`](crate::ops::Ops).
//!
//! It is found by name and not listed, so that `cp -r` and `find` of a mount do not meet it. What is in it is a table
//! ([`nodes`]): a name, a parent, who may read it, what it is for. The content of a file is rendered when it is opened and stays the
//! same for that open; the kernel keeps no page of it. Nothing here ever asks the store: a thousand stats cost nothing.
//!
//! The name is reserved: in the root nobody can make, rename, link or remove it, and one that is there anyway (an older volume,
//! another program) is hidden behind the control tree.

mod nodes;
mod overlay;

pub use nodes::Node;
pub use overlay::Control;

use crate::error::Result;

/// The name of the directory.
pub const NAME: &[u8] = b".smpfs";

/// What the files of the control tree say. Called on a thread that may block.
pub trait ControlSource: Send + Sync + 'static {
    /// The content of `node`, whole, as of now. [`Node::Version`] and [`Node::Readme`] are never asked for.
    ///
    /// # Errors
    /// Reach the program that opens the file.
    fn render(&self, node: Node) -> Result<Vec<u8>>;
}
