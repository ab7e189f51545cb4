//! Pickles as plain data: a machine that builds values and executes nothing.
//!
//! A pickle is a program for a stack machine, and Python's can call any function. This one knows the opcodes
//! that build numbers, texts, tuples, lists and dicts, and the few names of `global.rs`. A call is recorded
//! as a [`Node::Call`] with its arguments. Everything else is an error that names the opcode or the function.
//!
//! # Memory and time
//! An opcode makes at most one node, and nodes refer to each other by index, so memory is proportional to the
//! pickle. Values may be shared or contain themselves. Reading them costs [`Document::charge`], which a file
//! of honest size never exhausts.

mod global;
mod machine;

use std::cell::Cell;

use crate::file::Result;
use crate::import::problem::{SAVE_AGAIN, unsupported};

pub(super) use global::Global;

/// The index of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Id(u32);

/// A value of a pickle.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node<'a> {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(&'a str),
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    /// A reference to a storage outside the pickle. The node is a tuple that describes it.
    Persistent(Id),
    /// A call that Python would make: the function, and the tuple of its arguments.
    Call(Global, Id),
}

/// The values of a pickle.
pub(super) struct Document<'a> {
    nodes: Vec<Node<'a>>,
    root: Id,
    fuel: Cell<u64>,
}

impl<'a> Document<'a> {
    /// Reads a pickle.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self> {
        let (nodes, root) = machine::run(bytes)?;
        Ok(Self { nodes, root, fuel: Cell::new(16 * bytes.len() as u64) })
    }

    pub(super) fn root(&self) -> Id {
        self.root
    }

    pub(super) fn node(&self, id: Id) -> &Node<'a> {
        &self.nodes[id.0 as usize]
    }

    /// Pays for a visit of `count` values.
    ///
    /// A short pickle can list a long value many times. A file that lists each value about once pays less
    /// than it has.
    fn charge(&self, count: usize) -> Result<()> {
        let left = self.fuel.get().checked_sub(count as u64).ok_or_else(|| {
            unsupported(
                "data.pkl",
                "values that are listed about once",
                "the same values many times",
                SAVE_AGAIN,
            )
        })?;
        self.fuel.set(left);
        Ok(())
    }

    /// Returns the elements of a list or tuple, `None` for other values.
    pub(super) fn items(&self, id: Id) -> Result<Option<&[Id]>> {
        match self.node(id) {
            Node::List(items) | Node::Tuple(items) => {
                self.charge(items.len() + 1).map(|()| Some(items.as_slice()))
            }
            _ => Ok(None),
        }
    }

    /// Returns the elements of a tuple of `N` or more elements, the first `N` of them.
    pub(super) fn tuple<const N: usize>(&self, id: Id) -> Option<[Id; N]> {
        match self.node(id) {
            Node::Tuple(items) => items.first_chunk().copied(),
            _ => None,
        }
    }

    /// Returns the entries of a dict, `None` for other values. A later entry replaces an earlier one with the
    /// same key.
    pub(super) fn entries(&self, id: Id) -> Result<Option<&[(Id, Id)]>> {
        match self.node(id) {
            Node::Dict(entries) => self.charge(entries.len() + 1).map(|()| Some(entries.as_slice())),
            _ => Ok(None),
        }
    }

    /// Returns the value of a text key. It is `None` for absent keys and for values that are no dicts.
    pub(super) fn get(&self, id: Id, key: &str) -> Result<Option<Id>> {
        let found = self.entries(id)?.unwrap_or_default().iter().rev();
        Ok(found.into_iter().find(|&&(k, _)| self.text(k) == Some(key)).map(|&(_, value)| value))
    }

    pub(super) fn text(&self, id: Id) -> Option<&'a str> {
        match self.node(id) {
            Node::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn int(&self, id: Id) -> Option<i64> {
        match self.node(id) {
            Node::Int(int) => Some(*int),
            _ => None,
        }
    }

    /// Returns a number of Python. An int is converted as Python's `float` does.
    pub(super) fn number(&self, id: Id) -> Option<f64> {
        match self.node(id) {
            Node::Int(int) => Some(*int as f64),
            Node::Float(float) => Some(*float),
            _ => None,
        }
    }

    /// Returns the kind of a value in a word, for messages.
    pub(super) fn kind(&self, id: Id) -> &'static str {
        match self.node(id) {
            Node::None => "None",
            Node::Bool(_) => "a bool",
            Node::Int(_) => "an int",
            Node::Float(_) => "a float",
            Node::Text(_) => "a str",
            Node::List(_) => "a list",
            Node::Tuple(_) => "a tuple",
            Node::Dict(_) => "a dict",
            Node::Global(_) => "a class or function",
            Node::Persistent(_) => "a storage",
            Node::Call(Global::Tensor | Global::Parameter, _) => "a tensor",
            Node::Call(..) => "an object",
        }
    }
}
