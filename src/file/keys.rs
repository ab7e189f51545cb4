//! The keys of a cap file.

pub(super) const ARCHITECTURE: &str = "general.architecture";
pub(super) const CONTROL_VECTOR: &str = "controlvector";
pub(super) const MODEL_HINT: &str = "controlvector.model_hint";
pub(super) const LAYER_COUNT: &str = "controlvector.layer_count";
pub(super) const VERSION: &str = "axiscap.version";
pub(super) const CURRENT_VERSION: u32 = 1;
pub(super) const WIDTH: &str = "axiscap.width";
pub(super) const BLOCK: &str = "axiscap.cap.block";
pub(super) const TENSOR: &str = "axiscap.cap.tensor";
pub(super) const FLOOR: &str = "axiscap.cap.floor";
pub(super) const CEILING: &str = "axiscap.cap.ceiling";
pub(super) const STRENGTH: &str = "axiscap.cap.strength";
pub(super) const NAME: &str = "axiscap.cap.name";
pub(super) const NORM: &str = "axiscap.cap.norm";
pub(super) const ORIENTATION: &str = "axiscap.orientation";
pub(super) const MODEL_ARCHITECTURE: &str = "axiscap.model.architecture";
pub(super) const MODEL_NAME: &str = "axiscap.model.name";
pub(super) const MODEL_BLOCKS: &str = "axiscap.model.block_count";
pub(super) const MODEL_WIDTH: &str = "axiscap.model.width";
pub(super) const MODEL_FILE_TYPE: &str = "axiscap.model.file_type";
pub(super) const MODEL_NORM_DIGEST: &str = "axiscap.model.norm_digest";
pub(super) const MODEL_NORM_TENSOR: &str = "axiscap.model.norm.tensor";
pub(super) const MODEL_NORM_SHA256: &str = "axiscap.model.norm.sha256";
pub(super) const POLICY_PREFIX: &str = "axiscap.policy.";
pub(super) const SKIP_POSITIONS: &str = "axiscap.policy.skip_positions";
pub(super) const ORIGIN_PREFIX: &str = "axiscap.origin.";
