//! Whether a KV cache fits into memory. Linux grants memory that it does not have and kills the process on
//! first use, so this is checked before llama.cpp allocates.

use crate::backend::devices;
use crate::error::Error;
use crate::model::Model;
use crate::options::KvType;

/// Refuses a context whose KV cache alone is larger than the free memory. Accepts it if either size is
/// unknown: a cache on a GPU, models with windows, latent or recurrent memory, other systems.
pub(crate) fn check(model: &Model, ctx: u32, kv: KvType) -> Result<(), Error> {
    let on_gpu = model.options().gpu_layers != Some(0) && devices().iter().any(|d| d.kind.ends_with("gpu"));
    let (Some(needed), Some(available)) = (kv_bytes(model, ctx, kv), available()) else { return Ok(()) };
    if on_gpu || needed <= available {
        return Ok(());
    }
    let gib = |bytes: u64| bytes as f64 / f64::from(1u32 << 30);
    let reason = format!("its KV cache takes {:.1} GiB, but {:.1} GiB are free", gib(needed), gib(available));
    Err(Error::ContextCreation { ctx, reason })
}

fn kv_bytes(model: &Model, ctx: u32, kv: KvType) -> Option<u64> {
    let architecture = &model.shape().architecture;
    let number = |key: &str| model.metadata(&format!("{architecture}.{key}"))?.parse::<u64>().ok();
    let special = ["attention.sliding_window", "attention.kv_lora_rank", "ssm.state_size", "wkv.head_size"];
    if special.iter().any(|key| number(key).is_some())
        || model.llama().is_recurrent()
        || model.llama().is_hybrid()
    {
        return None;
    }
    let heads = u64::from(model.llama().n_head());
    let head = || (model.shape().width as u64).checked_div(heads);
    let key = number("attention.key_length").or_else(head)?;
    let value = number("attention.value_length").or_else(head)?;
    let bytes = match kv {
        KvType::F16 => 2,
        KvType::F32 => 4,
    };
    let row = u64::from(model.llama().n_head_kv()) * (key + value) * bytes;
    row.checked_mul(model.shape().blocks as u64)?.checked_mul(u64::from(ctx))
}

/// Returns the bytes that can be used without swapping.
fn available() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}
