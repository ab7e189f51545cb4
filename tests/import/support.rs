//! Files of PyTorch written byte by byte: pickles of protocol 2 in archives of stored entries.

/// A value of a pickle.
#[derive(Debug, Clone)]
pub enum P {
    None,
    Bool(bool),
    Int(i32),
    Float(f64),
    Text(String),
    List(Vec<P>),
    Tuple(Vec<P>),
    Dict(Vec<(P, P)>),
    /// `collections.OrderedDict`, empty
    Ordered,
    Tensor(Tensor),
    /// `torch.nn.Parameter`
    Parameter(Tensor),
    /// Opcodes as they are. They must leave one value.
    Raw(Vec<u8>),
}

/// A tensor on a storage.
#[derive(Debug, Clone)]
pub struct Tensor {
    /// The storage class, e.g. `BFloat16Storage`
    pub class: &'static str,
    pub key: &'static str,
    pub count: i32,
    pub offset: i32,
    pub size: Vec<i32>,
    pub stride: Vec<i32>,
}

impl Tensor {
    /// A contiguous tensor that is a whole storage.
    pub fn whole(class: &'static str, key: &'static str, size: &[i32]) -> Self {
        let mut stride = vec![1; size.len()];
        for index in (1..size.len()).rev() {
            stride[index - 1] = stride[index] * size[index];
        }
        Self { class, key, count: size.iter().product(), offset: 0, size: size.to_vec(), stride }
    }
}

pub fn text(text: &str) -> P {
    P::Text(text.into())
}

pub fn dict<const N: usize>(entries: [(&str, P); N]) -> P {
    P::Dict(entries.into_iter().map(|(key, value)| (text(key), value)).collect())
}

fn ints(values: &[i32]) -> P {
    P::Tuple(values.iter().map(|&value| P::Int(value)).collect())
}

/// Opcode of a class or function.
pub fn global(module: &str, name: &str) -> Vec<u8> {
    format!("c{module}\n{name}\n").into_bytes()
}

/// Returns a whole pickle.
pub fn pickle(value: &P) -> Vec<u8> {
    raw_pickle(&opcodes(value))
}

/// Returns a pickle of opcodes as they are.
pub fn raw_pickle(opcodes: &[u8]) -> Vec<u8> {
    [b"\x80\x02", opcodes, b"."].concat()
}

pub fn opcodes(value: &P) -> Vec<u8> {
    let mut out = Vec::new();
    put(value, &mut out);
    out
}

fn put(value: &P, out: &mut Vec<u8>) {
    match value {
        P::None => out.push(b'N'),
        P::Bool(value) => out.push(if *value { 0x88 } else { 0x89 }),
        P::Int(value) => {
            out.push(b'J');
            out.extend(value.to_le_bytes());
        }
        P::Float(value) => {
            out.push(b'G');
            out.extend(value.to_be_bytes());
        }
        P::Text(text) => {
            out.push(b'X');
            out.extend((text.len() as u32).to_le_bytes());
            out.extend(text.as_bytes());
        }
        P::List(items) => {
            out.extend(b"](");
            items.iter().for_each(|item| put(item, out));
            out.push(b'e');
        }
        P::Tuple(items) => {
            out.push(b'(');
            items.iter().for_each(|item| put(item, out));
            out.push(b't');
        }
        P::Dict(entries) => {
            out.extend(b"}(");
            for (key, value) in entries {
                put(key, out);
                put(value, out);
            }
            out.push(b'u');
        }
        P::Ordered => {
            out.extend(global("collections", "OrderedDict"));
            out.extend(b")R");
        }
        P::Tensor(tensor) => put_tensor(tensor, out),
        P::Parameter(tensor) => {
            out.extend(global("torch._utils", "_rebuild_parameter"));
            put(&P::Tuple(vec![P::Tensor(tensor.clone()), P::Bool(true), P::Ordered]), out);
            out.push(b'R');
        }
        P::Raw(bytes) => out.extend(bytes),
    }
}

fn put_tensor(tensor: &Tensor, out: &mut Vec<u8>) {
    out.extend(global("torch._utils", "_rebuild_tensor_v2"));
    let class = P::Raw(global("torch", tensor.class));
    let storage = P::Tuple(vec![text("storage"), class, text(tensor.key), text("cpu"), P::Int(tensor.count)]);
    let storage = P::Raw([opcodes(&storage), b"Q".to_vec()].concat());
    let [offset, size, stride] = [P::Int(tensor.offset), ints(&tensor.size), ints(&tensor.stride)];
    put(&P::Tuple(vec![storage, offset, size, stride, P::Bool(false), P::Ordered]), out);
    out.push(b'R');
}

/// An entry of an archive, with fields that a test may make wrong.
#[derive(Debug, Clone)]
pub struct Entry {
    pub name: String,
    pub data: Vec<u8>,
    pub flags: u16,
    pub method: u16,
    /// Sizes and checksum in the directory, if others than the data's.
    pub size: Option<u32>,
    pub crc: Option<u32>,
    /// Offset of the local header in the directory, if another.
    pub offset: Option<u32>,
}

pub fn entry(name: &str, data: impl Into<Vec<u8>>) -> Entry {
    let (name, data) = (name.to_owned(), data.into());
    Entry { name, data, flags: 0x800, method: 0, size: None, crc: None, offset: None }
}

pub fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(
            crc ^ u32::from(byte),
            |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 },
        )
    })
}

/// Returns an archive of these entries. Flag 8 puts checksum and sizes after the data, as `torch.save` does.
pub fn zip(entries: &[Entry]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for entry in entries {
        let offset = entry.offset.unwrap_or(out.len() as u32);
        let crc = entry.crc.unwrap_or_else(|| crc32(&entry.data));
        let size = entry.size.unwrap_or(entry.data.len() as u32);
        let descriptor = entry.flags & 8 != 0;
        let mut common = Vec::new();
        for field in [entry.flags, entry.method, 0, 0x21] {
            common.extend(field.to_le_bytes());
        }
        let sizes =
            |zero: bool| [crc, size, size].map(|value| if zero { 0 } else { value }.to_le_bytes()).concat();
        let name = (entry.name.len() as u16).to_le_bytes();
        out.extend(
            [b"PK\x03\x04\x14\0", &*common, &sizes(descriptor), &name, b"\0\0", entry.name.as_bytes()]
                .concat(),
        );
        out.extend(&entry.data);
        if descriptor {
            out.extend([b"PK\x07\x08".as_slice(), &sizes(false)].concat());
        }
        let place = [[0; 12].as_slice(), &offset.to_le_bytes()].concat();
        directory.extend(
            [b"PK\x01\x02\x14\0\x14\0", &*common, &sizes(false), &name, &place, entry.name.as_bytes()]
                .concat(),
        );
    }
    let count = (entries.len() as u16).to_le_bytes();
    let (start, length) = (out.len() as u32, directory.len() as u32);
    out.extend(directory);
    out.extend([b"PK\x05\x06\0\0\0\0".as_slice(), &count, &count].concat());
    out.extend([length.to_le_bytes(), start.to_le_bytes()].concat());
    out.extend([0, 0]);
    out
}

/// Returns a file as `torch.save` writes it.
pub fn torch(value: &P, storages: &[(&str, Vec<u8>)]) -> Vec<u8> {
    torch_of(pickle(value), storages)
}

pub fn torch_of(pickle: Vec<u8>, storages: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut entries = vec![entry("file/data.pkl", pickle), entry("file/byteorder", "little")];
    entries.extend(storages.iter().map(|(key, data)| entry(&format!("file/data/{key}"), data.clone())));
    entries.push(entry("file/version", "3\n"));
    entries.iter_mut().for_each(|entry| entry.flags |= 8);
    zip(&entries)
}

/// The bytes of f32 values.
pub fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// The bytes of values that bf16 holds exactly.
pub fn bf16s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| ((value.to_bits() >> 16) as u16).to_le_bytes()).collect()
}

/// A `capping_config.pt` of four layers of width 3, in bf16. Two experiments cap layers 1 and 2, and another
/// one layer 3 twice. The stored vectors are (0, -4 - L, 3).
pub fn config() -> Vec<u8> {
    torch(&config_value(), &config_storages())
}

pub fn config_storages() -> Vec<(&'static str, Vec<u8>)> {
    (0..4).map(|layer| (KEYS[layer], bf16s(&[0.0, -4.0 - layer as f32, 3.0]))).collect()
}

const KEYS: [&str; 4] = ["0", "1", "2", "3"];

pub fn config_value() -> P {
    let name = |layer: usize| text(&format!("layer_{layer}/contrast_role_pos3_default1"));
    let vectors = (0..4).map(|layer| {
        let vector = P::Tensor(Tensor::whole("BFloat16Storage", KEYS[layer], &[3]));
        (name(layer), dict([("vector", vector), ("layer", P::Int(layer as i32))]))
    });
    let cap = |layer: usize, cap: f64| dict([("vector", name(layer)), ("cap", P::Float(cap))]);
    let experiment = |id: &str, caps: Vec<P>| dict([("id", text(id)), ("interventions", P::List(caps))]);
    dict([
        ("vectors", P::Dict(vectors.collect())),
        (
            "experiments",
            P::List(vec![
                experiment("layers_1:3-p0.25", vec![cap(1, -2.5), cap(2, 1.25)]),
                experiment("layers_1:3-p0.5", vec![cap(1, -2.0), cap(2, 2.0), dict([("vector", name(0))])]),
                experiment("twice", vec![cap(3, 1.0), cap(3, 0.5)]),
            ]),
        ),
    ])
}

/// A tensor `[4, 3]` of f32: the vectors of each layer in turn.
pub fn stacked(values: &[[f32; 3]; 4]) -> Vec<u8> {
    torch(&P::Tensor(Tensor::whole("FloatStorage", "0", &[4, 3])), &[("0", f32s(values.as_flattened()))])
}
