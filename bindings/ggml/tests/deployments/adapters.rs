//! Adapters beside the caps: LoRA, and llama.cpp's own control vector.

use std::ffi::CString;

use axiscap_testing::llama::{Value, write_matrices};
use axiscap_testing::numbers::Random;
use llama_cpp_sys_2 as sys;

use crate::capped::{bits, rows};
use crate::script::{in_eights, run};
use crate::subjects::{attention, real};

#[test]
fn a_lora_adapter() {
    for subject in [attention(), real()] {
        let (blocks, width) = (subject.model.blocks(), subject.model.width() as i64);
        let mut random = Random(5);
        let mut values = |count: i64| (0..count).map(|_| 0.3 * random.signed()).collect::<Vec<_>>();
        let matrices: Vec<_> = (0..blocks)
            .flat_map(|block| {
                let name = format!("blk.{block}.attn_q.weight");
                [
                    (format!("{name}.lora_a"), [width, 4], values(4 * width)),
                    (format!("{name}.lora_b"), [4, width], values(4 * width)),
                ]
            })
            .collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        let metadata: [(&str, Value); 4] = [
            ("general.type", "adapter".into()),
            ("general.architecture", subject.architecture.into()),
            ("adapter.type", "lora".into()),
            ("adapter.lora.alpha", 4.0f32.into()),
        ];
        write_matrices(file.path(), &metadata, &matrices);
        let path = CString::new(file.path().to_str().unwrap()).unwrap();
        // SAFETY: the model lives as long as the program, and the path is a C string.
        let adapter = unsafe { sys::llama_adapter_lora_init(subject.model.raw(), path.as_ptr()) };
        assert!(!adapter.is_null(), "{}: llama.cpp takes the adapter", subject.name);
        run(subject, in_eights, |run| {
            let set = |run: &mut crate::script::Run<'_>, scale: f32| {
                let (mut adapters, mut scales) = ([adapter], [scale]);
                let count = usize::from(scale != 0.0);
                // SAFETY: context and adapter live, and the arrays have `count` values or more.
                let status = unsafe {
                    sys::llama_set_adapters_lora(
                        run.context().raw(),
                        adapters.as_mut_ptr(),
                        count,
                        scales.as_mut_ptr(),
                    )
                };
                assert_eq!(status, 0);
            };
            run.decode(&rows(0, 0, 12, |i| i == 11));
            set(run, 1.0);
            run.context().clear();
            run.decode(&rows(0, 0, 12, |i| i == 11));
            run.decode(&rows(0, 12, 1, |_| true));
            assert!(bits(&run.results()[..1]) != bits(&run.results()[1..2]), "the adapter has an effect");
            set(run, 0.0);
            run.context().clear();
            run.decode(&rows(0, 0, 12, |i| i == 11));
            let results = run.results();
            assert!(bits(&results[..1]) == bits(&results[results.len() - 1..]), "{}", subject.name);
        });
        // SAFETY: no context has it any more.
        unsafe { sys::llama_adapter_lora_free(adapter) }
    }
}

#[test]
fn a_control_vector() {
    for subject in [attention(), real()] {
        let (blocks, width) = (subject.model.blocks(), subject.model.width());
        let mut random = Random(6);
        // Directions of the blocks from 1 on.
        let directions: Vec<_> = (0..(blocks - 1) * width).map(|_| 0.5 * random.signed()).collect();
        run(subject, in_eights, |run| {
            run.decode(&rows(0, 0, 12, |i| i == 11));
            // SAFETY: the context lives, and llama.cpp copies the directions.
            let status = unsafe {
                sys::llama_set_adapter_cvec(
                    run.context().raw(),
                    directions.as_ptr(),
                    directions.len(),
                    width as i32,
                    1,
                    blocks as i32,
                )
            };
            assert_eq!(status, 0);
            run.context().clear();
            run.decode(&rows(0, 0, 12, |i| i == 11));
            run.decode(&rows(0, 12, 1, |_| true));
            assert!(bits(&run.results()[..1]) != bits(&run.results()[1..2]), "the vector has an effect");
        });
    }
}
