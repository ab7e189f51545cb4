//! From the opcodes of a pickle to nodes.

use crate::file::{FileError, Result};
use crate::import::pickle::{Global, Id, Node};
use crate::import::problem::{SAVE_AGAIN, malformed, quoted, unsupported};

/// Maximum size of a pickle. The tensors' data are not in it. The released configurations have about 60 kB.
const MAX_BYTES: usize = 16 << 20;
/// Maximum length of the name of a module, class or function.
const MAX_NAME_BYTES: usize = 256;

/// Nodes that every pickle shares, by index.
const NONE: Id = Id(0);
const FALSE: Id = Id(1);
const TRUE: Id = Id(2);
const EMPTY_TUPLE: Id = Id(3);

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    /// The opcode's place, for messages.
    start: usize,
    nodes: Vec<Node<'a>>,
    stack: Vec<Id>,
    /// Heights of the stack at the marks.
    marks: Vec<usize>,
    memo: Vec<Id>,
}

/// Returns the maximum number of nodes. Picklers need two bytes or more for each: they write a small number in
/// two, and store every other value in the memo.
fn max_nodes(pickle: &[u8]) -> usize {
    pickle.len() / 2 + 16
}

/// Runs a pickle to its `STOP`, which must be its last byte. Returns the nodes and the index of the result.
pub(super) fn run(bytes: &[u8]) -> Result<(Vec<Node<'_>>, Id)> {
    if bytes.len() > MAX_BYTES {
        let expected = format!("at most {MAX_BYTES} bytes without the tensors' data");
        return Err(unsupported("data.pkl", expected, format!("{} bytes", bytes.len()), SAVE_AGAIN));
    }
    let mut nodes = Vec::with_capacity(max_nodes(bytes));
    nodes.extend([Node::None, Node::Bool(false), Node::Bool(true), Node::Tuple(Vec::new())]);
    let (stack, marks, memo) = (Vec::new(), Vec::new(), Vec::new());
    let mut machine = Machine { bytes, at: 0, start: 0, nodes, stack, marks, memo };
    machine.header()?;
    while !machine.step()? {
        if machine.nodes.len() >= max_nodes(bytes) {
            return Err(unsupported("data.pkl", "values of two bytes or more", "shorter ones", SAVE_AGAIN));
        }
    }
    let left = bytes.len() - machine.at;
    if left > 0 {
        return Err(malformed(
            "data.pkl",
            "the end of the file after STOP",
            format!("{left} bytes after it"),
        ));
    }
    match machine.stack.as_slice() {
        &[root] if machine.marks.is_empty() => Ok((machine.nodes, root)),
        stack => Err(machine.refuse("one value at STOP", format!("{} on the stack", stack.len()))),
    }
}

impl<'a> Machine<'a> {
    fn header(&mut self) -> Result<()> {
        if self.byte()? != 0x80 {
            return Err(self.refuse("PROTO as the first opcode", "another one".into()));
        }
        match self.byte()? {
            2..=5 => Ok(()),
            other => Err(unsupported("data.pkl", "pickle protocol 2 to 5", other.to_string(), SAVE_AGAIN)),
        }
    }

    /// Carries out one opcode. Returns whether it was `STOP`.
    fn step(&mut self) -> Result<bool> {
        self.start = self.at;
        match self.byte()? {
            b'.' => return Ok(true),
            // FRAME: a length that only helps to read ahead.
            0x95 => drop(self.array::<8>()?),
            b'N' => self.stack.push(NONE),
            0x88 => self.stack.push(TRUE),
            0x89 => self.stack.push(FALSE),
            code @ (b'J' | b'K' | b'M' | 0x8a | b'G' | 0x8c | b'X' | 0x8d) => self.scalar(code)?,
            code @ (b'(' | b')' | b't' | 0x85..=0x87 | b']' | b'a' | b'e' | b'}' | b's' | b'u') => {
                self.container(code)?;
            }
            code @ (b'h' | b'j' | b'q' | b'r' | 0x94) => self.memoise(code)?,
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(module, name)?;
            }
            0x93 => self.stack_global()?,
            b'Q' => {
                let description = self.pop()?;
                self.push(Node::Persistent(description));
            }
            b'R' => self.call()?,
            code => return Err(self.refuse_opcode(code)),
        }
        Ok(false)
    }

    /// Numbers and texts.
    fn scalar(&mut self, code: u8) -> Result<()> {
        let node = match code {
            b'J' => Node::Int(i32::from_le_bytes(self.array()?).into()),
            b'K' => Node::Int(self.byte()?.into()),
            b'M' => Node::Int(u16::from_le_bytes(self.array()?).into()),
            0x8a => Node::Int(self.long()?),
            b'G' => Node::Float(f64::from_be_bytes(self.array()?)),
            _ => {
                let length = match code {
                    0x8c => self.byte()?.into(),
                    b'X' => u32::from_le_bytes(self.array()?).into(),
                    _ => u64::from_le_bytes(self.array()?),
                };
                Node::Text(self.text(length)?)
            }
        };
        self.push(node);
        Ok(())
    }

    /// Tuples, lists and dicts.
    fn container(&mut self, code: u8) -> Result<()> {
        match code {
            b'(' => self.marks.push(self.stack.len()),
            b')' => self.stack.push(EMPTY_TUPLE),
            b't' => {
                let items = self.pop_mark()?;
                self.push(Node::Tuple(items));
            }
            0x85..=0x87 => {
                let items = self.pop_last(usize::from(code - 0x84))?;
                self.push(Node::Tuple(items));
            }
            b']' => self.push(Node::List(Vec::new())),
            b'a' | b'e' => {
                let items = if code == b'a' { self.pop_last(1)? } else { self.pop_mark()? };
                self.append(items)?;
            }
            b'}' => self.push(Node::Dict(Vec::new())),
            _ => {
                let items = if code == b's' { self.pop_last(2)? } else { self.pop_mark()? };
                self.set(&items)?;
            }
        }
        Ok(())
    }

    /// Storing in the memo, and recalling from it.
    fn memoise(&mut self, code: u8) -> Result<()> {
        if code == 0x94 {
            let top = self.top()?;
            self.memo.push(top);
            return Ok(());
        }
        let index = match code {
            b'h' | b'q' => self.byte()?.into(),
            _ => u32::from_le_bytes(self.array()?),
        };
        if matches!(code, b'h' | b'j') { self.recall(index) } else { self.remember(index) }
    }

    fn long(&mut self) -> Result<i64> {
        let length = usize::from(self.byte()?);
        let bytes = self.take(length as u64)?;
        if length > 8 {
            return Err(self.refuse("an integer of at most 8 bytes", format!("{length} bytes")));
        }
        let negative = bytes.last().is_some_and(|&last| last >= 0x80);
        let mut padded = [if negative { 0xff } else { 0 }; 8];
        padded[..length].copy_from_slice(bytes);
        Ok(i64::from_le_bytes(padded))
    }

    fn text(&mut self, length: u64) -> Result<&'a str> {
        let bytes = self.take(length)?;
        str::from_utf8(bytes).map_err(|_| self.refuse("UTF-8 text", "an invalid sequence".into()))
    }

    fn append(&mut self, items: Vec<Id>) -> Result<()> {
        let list = self.top()?;
        match &mut self.nodes[list.0 as usize] {
            Node::List(old) => old.extend(items),
            _ => return Err(self.refuse("a list to append to", "another value".into())),
        }
        Ok(())
    }

    fn set(&mut self, items: &[Id]) -> Result<()> {
        let dict = self.top()?;
        let (pairs, []) = items.as_chunks::<2>() else {
            return Err(self.refuse("keys and values", "a key without a value".into()));
        };
        match &mut self.nodes[dict.0 as usize] {
            Node::Dict(old) => old.extend(pairs.iter().map(|&[key, value]| (key, value))),
            _ => return Err(self.refuse("a dict to fill", "another value".into())),
        }
        Ok(())
    }

    fn recall(&mut self, index: u32) -> Result<()> {
        match self.memo.get(index as usize) {
            Some(&id) => self.stack.push(id),
            None => {
                return Err(self.refuse("an index of the memo", format!("{index} of {}", self.memo.len())));
            }
        }
        Ok(())
    }

    /// Python's pickler numbers the memo without gaps. A larger index would ask for a larger memo.
    fn remember(&mut self, index: u32) -> Result<()> {
        let (top, index) = (self.top()?, index as usize);
        let length = self.memo.len();
        match self.memo.get_mut(index) {
            Some(old) => *old = top,
            None if index == length => self.memo.push(top),
            None => return Err(self.refuse("the next index of the memo", format!("{index} after {length}"))),
        }
        Ok(())
    }

    fn stack_global(&mut self) -> Result<()> {
        let names = self.pop_last(2)?;
        match [&self.nodes[names[0].0 as usize], &self.nodes[names[1].0 as usize]] {
            [&Node::Text(module), &Node::Text(name)] => self.global(module, name),
            _ => Err(self.refuse("the names of a module and a class", "another value".into())),
        }
    }

    fn global(&mut self, module: &str, name: &str) -> Result<()> {
        let Some(global) = Global::named(module, name) else {
            let expected = "tensors, storages and plain data only; nothing in the file is executed";
            let found = quoted(&format!("{module}.{name}"));
            return Err(unsupported(self.place(), expected, found, SAVE_AGAIN));
        };
        self.push(Node::Global(global));
        Ok(())
    }

    /// Records a call. Calls that only make plain data are replaced by the data.
    fn call(&mut self) -> Result<()> {
        let parts = self.pop_last(2)?;
        let (&Node::Global(function), Node::Tuple(arguments)) =
            (&self.nodes[parts[0].0 as usize], &self.nodes[parts[1].0 as usize])
        else {
            return Err(self.refuse("a listed function and a tuple", "another value".into()));
        };
        match (function, arguments.as_slice()) {
            (Global::OrderedDict, []) => self.push(Node::Dict(Vec::new())),
            (Global::Size, &[sizes]) if matches!(self.nodes[sizes.0 as usize], Node::Tuple(_)) => {
                self.stack.push(sizes);
            }
            (Global::Tensor | Global::Parameter, _) => self.push(Node::Call(function, parts[1])),
            _ => {
                return Err(
                    self.refuse("a call that makes a tensor, a size or a dict", "another call".into())
                );
            }
        }
        Ok(())
    }

    fn push(&mut self, node: Node<'a>) {
        // At most one node per byte of MAX_BYTES.
        self.stack.push(Id(self.nodes.len() as u32));
        self.nodes.push(node);
    }

    /// The lowest height that opcodes may reach: what lies below a mark belongs to another value.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Result<Id> {
        match self.stack.last() {
            Some(&top) if self.stack.len() > self.floor() => Ok(top),
            _ => Err(self.refuse("a value on the stack", "none".into())),
        }
    }

    fn pop(&mut self) -> Result<Id> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_last(&mut self, count: usize) -> Result<Vec<Id>> {
        match self.stack.len().checked_sub(count) {
            Some(start) if start >= self.floor() => Ok(self.stack.split_off(start)),
            _ => Err(self.refuse("values on the stack", format!("fewer than {count}"))),
        }
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>> {
        match self.marks.pop() {
            Some(mark) => Ok(self.stack.split_off(mark)),
            None => Err(self.refuse("a MARK", "none".into())),
        }
    }

    fn byte(&mut self) -> Result<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        match self.bytes[self.at..].first_chunk() {
            Some(&array) => {
                self.at += N;
                Ok(array)
            }
            None => Err(self.cut_short(N as u64)),
        }
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8]> {
        let left = &self.bytes[self.at..];
        match usize::try_from(length).ok().and_then(|length| left.get(..length)) {
            Some(taken) => {
                self.at += taken.len();
                Ok(taken)
            }
            None => Err(self.cut_short(length)),
        }
    }

    /// Returns the text up to the next newline.
    fn line(&mut self) -> Result<&'a str> {
        let left = &self.bytes[self.at..];
        let line =
            left.iter().take(MAX_NAME_BYTES + 1).position(|&byte| byte == b'\n').map(|end| &left[..end]);
        let Some(Ok(line)) = line.map(str::from_utf8) else {
            return Err(self.refuse("a name of UTF-8 and a newline", "neither".into()));
        };
        self.at += line.len() + 1;
        Ok(line)
    }

    fn place(&self) -> String {
        format!("data.pkl, byte {}", self.start)
    }

    fn cut_short(&self, length: u64) -> FileError {
        malformed(self.place(), format!("{length} bytes"), format!("{} left", self.bytes.len() - self.at))
    }

    fn refuse(&self, expected: &str, found: String) -> FileError {
        malformed(self.place(), expected, found)
    }

    fn refuse_opcode(&self, code: u8) -> FileError {
        let name = match code {
            b'b' => "BUILD, which restores an object of a class",
            0x81 => "NEWOBJ, which makes an object of a class",
            0x92 => "NEWOBJ_EX, which makes an object of a class",
            b'i' => "INST, which makes an object of a class",
            b'o' => "OBJ, which makes an object of a class",
            0x82..=0x84 => "EXT, which names a function by number",
            b'P' => "PERSID, a reference outside the file",
            b'B' | b'C' | 0x8e | 0x96 => "bytes",
            b'T' | b'U' | b'S' | b'V' | b'I' | b'L' | b'F' | b'g' | b'p' | b'd' | b'l' => {
                "an opcode of protocol 0 or 1"
            }
            0x8b => "LONG4, an integer of more than 255 bytes",
            0x8f..=0x91 => "a set",
            0x97 | 0x98 => "a buffer outside the file",
            b'0' | b'1' | b'2' => "an opcode that picklers do not write",
            0x80 => "PROTO for the second time",
            _ => "no opcode",
        };
        let found = format!("{name} (0x{code:02x})");
        unsupported(self.place(), "opcodes that build plain data and tensors", found, SAVE_AGAIN)
    }
}
