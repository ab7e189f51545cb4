//! Checks of a KV cache before llama.cpp allocates it.
//!
//! Whether it fits into memory: Linux grants memory that it does not have and kills the process on first use.
//! Whether its rows can be quantised: llama.cpp checks this only if it may use flash attention.

use llama_cpp_sys_2 as sys;

use crate::backend::devices;
use crate::error::Error;
use crate::kv_type::KvType;
use crate::model::Model;
use crate::options::ContextParams;

/// Refuses a context whose KV cache alone is larger than the free memory, and one whose heads cannot be cut
/// into the blocks of a quantised type. Accepts it if a size is unknown: a cache on a GPU, models with
/// windows, latent or recurrent memory, other systems.
pub(crate) fn check(model: &Model, params: &ContextParams) -> Result<(), Error> {
    let Some(heads) = Heads::of(model) else { return Ok(()) };
    check_blocks(&heads, params)?;
    let on_gpu = model.options().gpu_layers != Some(0) && devices().iter().any(|d| d.kind.ends_with("gpu"));
    let (Some(needed), Some(available)) = (heads.bytes(params), available()) else { return Ok(()) };
    if on_gpu || needed <= available {
        return Ok(());
    }
    let gib = |bytes: u64| bytes as f64 / f64::from(1u32 << 30);
    let reason = format!("its KV cache takes {:.1} GiB, but {:.1} GiB are free", gib(needed), gib(available));
    Err(Error::ContextCreation { ctx: params.ctx, reason })
}

/// Refuses what llama.cpp would compute wrongly: without flash attention it does not compare the width of
/// the heads with the block of the type, and addresses heads that begin within a block.
fn check_blocks(heads: &Heads, params: &ContextParams) -> Result<(), Error> {
    if params.flash_attention != sys::LLAMA_FLASH_ATTN_TYPE_DISABLED {
        return Ok(());
    }
    let (k, v) = (params.kv_type_k, params.kv_type_v);
    let misfit = |which: &str, kind: KvType, width: u64| {
        (!width.is_multiple_of(kind.block())).then(|| {
            format!(
                "the {which} of a head has {width} numbers, no multiple of the {} of a block",
                kind.block()
            )
        })
    };
    let [windowed_key, windowed_value] = heads.windowed;
    let keys = [Some(heads.key), windowed_key].into_iter().flatten();
    let values = [Some(heads.value), windowed_value].into_iter().flatten();
    let mut misfits = keys
        .filter_map(|width| misfit("key", k, width))
        .chain(values.filter_map(|width| misfit("value", v, width)));
    match misfits.next() {
        Some(reason) => Err(Error::KvTypes { k, v, reason }),
        None => Ok(()),
    }
}

/// The attention heads of a model.
struct Heads {
    /// Whether the keys and values of every token are kept in every block: no window, no latent or recurrent
    /// memory.
    keeps_all: bool,
    blocks: u64,
    /// Heads of keys and values per block.
    count: u64,
    /// Numbers of a key.
    key: u64,
    /// Numbers of a value.
    value: u64,
    /// Numbers of a key and a value of blocks with a window, where they differ.
    windowed: [Option<u64>; 2],
}

impl Heads {
    fn of(model: &Model) -> Option<Self> {
        let architecture = &model.shape().architecture;
        let number = |key: &str| model.metadata(&format!("{architecture}.{key}"))?.parse::<u64>().ok();
        let special =
            ["attention.sliding_window", "attention.kv_lora_rank", "ssm.state_size", "wkv.head_size"];
        let is_special = special.iter().any(|key| number(key).is_some());
        let heads = u64::from(model.llama().n_head());
        let head = || (model.shape().width as u64).checked_div(heads);
        Some(Self {
            keeps_all: !(is_special || model.llama().is_recurrent() || model.llama().is_hybrid()),
            blocks: model.shape().blocks as u64,
            count: u64::from(model.llama().n_head_kv()),
            key: number("attention.key_length").or_else(head)?,
            value: number("attention.value_length").or_else(head)?,
            windowed: ["attention.key_length_swa", "attention.value_length_swa"].map(number),
        })
    }

    /// Returns the bytes of the KV cache, `None` if they are unknown or do not fit into a u64.
    fn bytes(&self, params: &ContextParams) -> Option<u64> {
        if !self.keeps_all {
            return None;
        }
        let row = |kind: KvType, width: u64| Some(kind.row_bytes(self.count.checked_mul(width)?));
        let rows = row(params.kv_type_k, self.key)?.checked_add(row(params.kv_type_v, self.value)?)?;
        rows.checked_mul(self.blocks)?.checked_mul(u64::from(params.ctx))
    }
}

/// Returns the bytes that can be used without swapping.
fn available() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}
