//! Files with random changes are read or refused, and what is read can be written as a cap file.

use axiscap::import::{PointsTo, Request, Source};
use proptest::prelude::*;

use crate::support::{config, config_storages, config_value, pickle, stacked, torch_of};
use crate::target;

/// Does everything with a file that a caller can.
fn use_whole(bytes: Vec<u8>) {
    let Ok(source) = Source::from_bytes(bytes) else { return };
    let Ok(description) = source.describe() else { return };
    let ids: Vec<Option<&str>> = match description.experiments.as_slice() {
        [] => vec![None],
        experiments => experiments.iter().map(|line| Some(line.id.as_str())).collect(),
    };
    for experiment in ids {
        let request = Request { experiment, points_to: Some(PointsTo::Roles), ..Request::default() };
        if let Ok(imported) = source.caps(&target(), &request) {
            let bytes = imported.file.to_bytes().unwrap();
            assert_eq!(axiscap::file::CapFile::from_bytes(&bytes).unwrap(), imported.file);
        }
    }
}

fn changes() -> impl Strategy<Value = Vec<(prop::sample::Index, u8)>> {
    prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// The archive is right, so that the changes reach the pickle's machine.
    #[test]
    fn a_pickle_with_changes(changes in changes()) {
        let mut bytes = pickle(&config_value());
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        use_whole(torch_of(bytes, &config_storages()));
    }

    #[test]
    fn an_archive_with_changes(changes in changes()) {
        let mut bytes = config();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        use_whole(bytes);
    }

    #[test]
    fn a_pickle_of_random_opcodes(opcodes in prop::collection::vec(opcode(), 0..60)) {
        let mut bytes = b"\x80\x02".to_vec();
        bytes.extend(opcodes.concat());
        bytes.push(b'.');
        use_whole(torch_of(bytes, &[("0", vec![0; 48])]));
    }

    #[test]
    fn random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        use_whole(bytes.clone());
        use_whole([b"PK\x03\x04", bytes.as_slice()].concat());
        use_whole([b"GGUF\x03\0\0\0", bytes.as_slice()].concat());
        use_whole([&(bytes.len() as u64).to_le_bytes()[..], b"{", bytes.as_slice()].concat());
    }

    #[test]
    fn a_text_of_yaml(text in "[ a-c:\\-\\[\\]{}*&'\"\n]{0,60}") {
        use_whole(format!("pca: {text}").into_bytes());
        use_whole(text.into_bytes());
    }

    /// Vectors are read to the bit, whatever they are.
    #[test]
    fn values_are_those_of_the_file(bits in prop::collection::vec(any::<u32>(), 12)) {
        let rows: [[f32; 3]; 4] = std::array::from_fn(|i| std::array::from_fn(|j| f32::from_bits(bits[3 * i + j])));
        let source = Source::from_bytes(stacked(&rows)).unwrap();
        for (layer, row) in rows.iter().enumerate() {
            let request = Request { blocks: Some(layer..layer + 1), ..Request::default() };
            match source.caps(&target(), &request) {
                Ok(imported) => {
                    let expected = axiscap::Axis::from_direction(row).unwrap();
                    prop_assert_eq!(imported.file.caps.caps()[0].cap.axis(), &expected);
                }
                Err(error) => prop_assert!(axiscap::Axis::from_direction(row).is_err(), "{}", error),
            }
        }
    }
}

fn opcode() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::sample::select(&b"(N])}taesuQR\x85\x86\x87\x88\x89\x93\x94."[..]).prop_map(|code| vec![code]),
        (prop::sample::select(&b"Khq"[..]), 0..9u8).prop_map(|(code, index)| vec![code, index]),
        prop::sample::select(
            &[
                "ctorch._utils\n_rebuild_tensor_v2\n",
                "ctorch\nFloatStorage\n",
                "ctorch\nSize\n",
                "ccollections\nOrderedDict\n"
            ][..]
        )
        .prop_map(|text| text.as_bytes().to_vec()),
        prop::sample::select(
            &["storage", "0", "cpu", "vectors", "experiments", "vector", "axis", "layer"][..]
        )
        .prop_map(|text| [&[b'X', text.len() as u8, 0, 0, 0], text.as_bytes()].concat()),
    ]
}
