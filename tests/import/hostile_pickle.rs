//! Pickles that ask for more than data. Each is refused with the name of what it asked for.

use axiscap::import::Source;

use crate::support::{
    P, Tensor, config, config_storages, f32s, global, opcodes, pickle, raw_pickle, torch, torch_of,
};
use crate::{assert_contains, refused};

fn file(opcodes: &[u8]) -> Vec<u8> {
    torch_of(raw_pickle(opcodes), &[])
}

#[test]
fn every_opcode_that_is_not_on_the_list_is_refused() {
    let known = b"(NJKMGX]}taesuhjqrcQR).\x85\x86\x87\x88\x89\x8a\x8c\x8d\x93\x94\x95";
    let mut refusals = 0;
    for code in (0..=255u8).filter(|code| !known.contains(code)) {
        // Values of every kind below it, so that only the opcode itself can be wrong.
        let setup = [&global("collections", "OrderedDict")[..], b")(K\x01K\x02"].concat();
        let message = refused(file(&[&setup[..], &[code], b"os\nsystem\n\0\0\0\0\0\0\0\0"].concat()));
        assert_contains(&message, &[&format!("(0x{code:02x})"), "opcodes that build plain data"]);
        refusals += 1;
    }
    assert_eq!(refusals, 256 - known.len());
    for (code, words) in [(b'b', "BUILD"), (0x81, "NEWOBJ"), (b'i', "INST"), (0x82, "EXT"), (b'P', "PERSID")]
    {
        assert_contains(&refused(file(&[b'N', code])), &[words]);
    }
}

#[test]
fn functions_that_are_not_on_the_list_are_refused_by_name() {
    for (module, name) in [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("__builtin__", "exec"),
        ("builtins", "getattr"),
        ("subprocess", "Popen"),
        ("torch", "load"),
        ("torch.hub", "load"),
        ("torch._utils", "_rebuild_tensor"),
        ("torch", "FloatStorage.from_file"),
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("sklearn.decomposition._pca", "PCA"),
        ("numpy.core.multiarray", "scalar"),
    ] {
        let message = refused(file(&[&global(module, name)[..], b"(X\x02\0\0\0idtR"].concat()));
        assert_contains(&message, &[&format!("\"{module}.{name}\""), "nothing in the file is executed"]);
        // The same through the stack.
        let names = [P::Text(module.into()), P::Text(name.into())].map(|text| opcodes(&text)).concat();
        assert_contains(&refused(file(&[&names[..], b"\x93"].concat())), &[&format!("\"{module}.{name}\"")]);
    }
}

#[test]
fn calls_of_other_values_are_refused() {
    for opcodes in [
        &b"X\x06\0\0\0system(tR"[..],
        b"N)R",
        b"()R",
        b"]}R",
        b")R",
        b"K\x01R",
        b"ctorch\nFloatStorage\n)R",
        b"ctorch\nfloat32\n)R",
        b"ctorch\nSize\n)R",
        b"ccollections\nOrderedDict\n(K\x01tR",
    ] {
        assert_contains(&refused(file(opcodes)), &["data.pkl, byte"]);
    }
}

#[test]
fn a_stack_that_does_not_hold_what_an_opcode_needs_is_refused() {
    for opcodes in [
        &b""[..],
        b"(",
        b"t",
        b"e",
        b"u",
        b"a",
        b"s",
        b"K\x01a",
        b"K\x01K\x02a",
        b"K\x01(K\x02e",
        b"](K\x01u",
        b"}(K\x01u",
        b"}(K\x01K\x02e",
        b"\x85",
        b"K\x01\x86",
        b"K\x01(\x85",
        b"K\x01(q\0t",
        b"(Q",
        b"R",
        b"\x93",
        b"h\0",
        b"j\0\0\0\0",
        b"K\x01q\x01",
        b"K\x01r\xff\xff\xff\xff",
        b"\x94",
        b"K\x01K\x02",
        b"K\x01(K\x02",
        b"\x80\x02N",
        b"\x8a\x09123456789",
        b"X\xff\xff\xff\xff",
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff",
        b"X\x02\0\0\0\xff\xfe",
        b"cos",
        b"c\xff\n\n",
    ] {
        assert_contains(&refused(file(opcodes)), &["data.pkl"]);
    }
    let long = [b"c", &[b'a'; 10_000][..], b"\nx\n"].concat();
    assert_contains(&refused(file(&long)), &["a name of UTF-8 and a newline"]);
    assert_contains(&refused(torch_of(b"N.".to_vec(), &[])), &["PROTO as the first opcode"]);
    assert_contains(&refused(torch_of(b"\x80\x06N.".to_vec(), &[])), &["pickle protocol 2 to 5", "6"]);
    assert_contains(&refused(torch_of(b"\x80\x02N.N".to_vec(), &[])), &["1 bytes after it"]);
    assert_contains(&refused(torch_of(Vec::new(), &[])), &["data.pkl"]);
}

/// A short pickle that lists a value many times, or itself, costs neither memory nor time.
#[test]
fn values_that_are_listed_many_times_are_refused() {
    // Lists of lists, each twice as large as the one before when it is written out.
    let mut doubling = b"](q\0".to_vec();
    for level in 0..200u8 {
        doubling.extend([b'e', b']', b'q', level + 1, b'(', b'h', level, b'h', level]);
    }
    doubling.push(b'e');
    refused(file(&doubling));
    // A list that holds itself.
    refused(file(b"]q\0(h\0h\0e"));
    // An experiment with many interventions, listed many times.
    let mut bomb =
        b"}(X\x07\0\0\0vectors}X\x0b\0\0\0experiments](}(X\x02\0\0\0idX\x01\0\0\0aX\x0d\0\0\0interventions]("
            .to_vec();
    bomb.extend(b"}q\0");
    bomb.extend(b"h\0".repeat(20_000));
    bomb.extend(b"euq\x01");
    bomb.extend(b"h\x01".repeat(20_000));
    bomb.extend(b"eu");
    assert_contains(&refused(file(&bomb)), &["listed about once"]);
}

#[test]
fn deep_nesting_is_read_without_recursion() {
    for open in [&b"("[..], b"]("] {
        let close = if open.len() == 1 { b"t" } else { b"e" };
        let deep = [open.repeat(100_000), close.repeat(100_000)].concat();
        let message = refused(file(&deep));
        assert_contains(&message, &["expected a"]);
    }
    let deep = [&b"K\x01"[..], &b"\x85".repeat(100_000)].concat();
    refused(file(&deep));
}

#[test]
fn a_tensor_outside_its_storage_is_refused() {
    let whole = Tensor::whole("FloatStorage", "0", &[4, 3]);
    let message = |tensor: Tensor| refused(torch(&P::Tensor(tensor), &[("0", f32s(&[1.0; 12]))]));
    let outside = &["tensor", "elements among the 12 of its storage"];
    assert_contains(&message(Tensor { offset: 1, ..whole.clone() }), outside);
    assert_contains(&message(Tensor { offset: i32::MAX, ..whole.clone() }), outside);
    assert_contains(&message(Tensor { size: vec![5, 3], ..whole.clone() }), outside);
    assert_contains(&message(Tensor { stride: vec![4, 1], ..whole.clone() }), outside);
    assert_contains(
        &message(Tensor { size: vec![i32::MAX; 8], stride: vec![i32::MAX; 8], ..whole.clone() }),
        outside,
    );
    assert_contains(
        &message(Tensor { size: vec![1; 9], stride: vec![1; 9], ..whole.clone() }),
        &["8 dimensions"],
    );
    assert_contains(&message(Tensor { stride: vec![1], ..whole.clone() }), &["a stride for each"]);
    for (tensor, field) in [
        (Tensor { offset: -1, ..whole.clone() }, "storage offset of tensor"),
        (Tensor { size: vec![4, -3], ..whole.clone() }, "size of tensor"),
        (Tensor { stride: vec![-3, 1], ..whole.clone() }, "stride of tensor"),
        (Tensor { count: -12, ..whole.clone() }, "storage of tensor"),
    ] {
        assert_contains(&message(tensor), &[field, "an integer from 0"]);
    }
    // Expanded along a dimension: many values in few bytes.
    let expanded = Tensor { size: vec![1 << 20, 3], stride: vec![0, 1], ..whole.clone() };
    assert_contains(&message(expanded), &["at most 12 elements", "several times"]);
    // The storage is shorter or longer than the pickle says, or absent.
    assert_contains(&message(Tensor { count: 13, ..whole.clone() }), &["13 elements of 4 bytes", "48 bytes"]);
    assert_contains(&message(Tensor { count: 11, ..whole.clone() }), &["11 elements of 4 bytes"]);
    assert_contains(
        &message(Tensor { class: "DoubleStorage", ..whole.clone() }),
        &["12 elements of 8 bytes"],
    );
    assert_contains(&message(Tensor { key: "1", ..whole.clone() }), &["an entry data/\"1\"", "none"]);
    assert_contains(&message(Tensor { key: "../data/0", ..whole }), &["none"]);
}

#[test]
fn a_storage_that_is_no_storage_is_refused() {
    let rebuild = global("torch._utils", "_rebuild_tensor_v2");
    for storage in [
        &b"N"[..],
        b"NQ",
        b")Q",
        b"(X\x06\0\0\0modulectorch\nFloatStorage\nX\x01\0\0\x000NK\x01tQ",
        b"(X\x07\0\0\0storagectorch\nSize\nX\x01\0\0\x000NK\x01tQ",
        b"(X\x07\0\0\0storagectorch\nFloatStorage\nK\0NK\x01tQ",
        b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000NNtQ",
    ] {
        let opcodes = [&rebuild[..], b"(", storage, b"K\0K\x01\x85K\x01\x85tR"].concat();
        assert_contains(&refused(file(&opcodes)), &["storage of tensor"]);
    }
    for arguments in [&b")"[..], b"(NNNt"] {
        assert_contains(
            &refused(file(&[&rebuild[..], arguments, b"R"].concat())),
            &["storage, offset, size and stride"],
        );
    }
    let parameter = global("torch._utils", "_rebuild_parameter");
    assert_contains(
        &refused(file(&[&parameter[..], b"(Nt", b"R"].concat())),
        &["a parameter that is a tensor"],
    );
}

#[test]
fn a_pickle_cut_short_at_any_byte_is_refused() {
    let good = pickle(&crate::support::config_value());
    for length in 0..good.len() {
        refused(torch_of(good[..length].to_vec(), &config_storages()));
    }
}

/// Any byte may be wrong: the reader neither panics nor asks for much, and says what it did not accept.
#[test]
fn a_file_with_any_byte_changed_is_read_or_refused() {
    let good = pickle(&crate::support::config_value());
    for at in 0..good.len() {
        for change in [0xff, 0x80, 0x01, b'b' ^ good[at], b'R' ^ good[at], b'(' ^ good[at]] {
            let mut bytes = good.clone();
            bytes[at] ^= change;
            if let Ok(source) = Source::from_bytes(torch_of(bytes, &config_storages())) {
                drop(source.describe());
            }
        }
    }
    let good = config();
    for at in 0..good.len() {
        let mut bytes = good.clone();
        bytes[at] ^= 0xff;
        drop(Source::from_bytes(bytes));
    }
}
