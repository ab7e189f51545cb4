/* axiscap: activation capping along persona axes. Cap files, and caps on rows on the CPU and on CUDA GPUs.
 *
 * cbindgen made this file from bindings/c/src. Edit the sources, then run
 *
 *     AXISCAP_UPDATE_HEADER=1 cargo test -p axiscap-c --test header
 *
 * Rules for all functions:
 *
 * - A function that can fail returns an axiscap_status. axiscap_last_error has the message.
 * - Handles (axiscap_caps, axiscap_table, axiscap_device, axiscap_device_table) are made by the function that
 *   returns them through a parameter `out`, and freed by the function that ends in _free. If that fails, *out
 *   becomes NULL. A handle does not need the handles that it was made from: they can be freed at once.
 * - Pointers are checked for NULL and for alignment. That they point to live memory of the right size is the
 *   caller's responsibility.
 * - Functions that take a handle as `const` may run on several threads at once with one handle. A function
 *   that takes it without `const` needs that no other thread uses the handle in the meantime.
 * - A fault of the library is the status AXISCAP_STATUS_INTERNAL. It neither unwinds into the caller nor ends
 *   the process. The exception is memory that runs out, which aborts the process.
 */


#ifndef AXISCAP_H
#define AXISCAP_H

#include <stddef.h>
#include <stdint.h>

/**
 * A flag of statistics: the projection was outside the bounds.
 */
#define AXISCAP_ENGAGED 1

/**
 * A flag of statistics: the projection, or the step towards the bound, was NaN or infinite. The row was left
 * unchanged.
 */
#define AXISCAP_NON_FINITE 2

/**
 * A flag of statistics: the row's profile does not exist in the table, and the row went uncapped. Only a GPU
 * sets it, in the row's first entry. The CPU refuses such a call.
 */
#define AXISCAP_BAD_PROFILE 4

/**
 * A type of values: float.
 */
#define AXISCAP_F32 1

/**
 * A type of values: IEEE half precision.
 */
#define AXISCAP_F16 2

/**
 * A type of values: bfloat16.
 */
#define AXISCAP_BF16 3

/**
 * An operation: h = cap(h), in place. A row on which no cap acts is not written.
 */
#define AXISCAP_CAP 1

/**
 * An operation: h = cap(x + residual). Every row of h is written.
 */
#define AXISCAP_ADD_CAP 2

/**
 * An operation: h = cap(h), and normed = RMSNorm(h) * weight. Every row of normed is written.
 */
#define AXISCAP_CAP_NORM 3

/**
 * An operation: h = cap(x + residual), and normed = RMSNorm(h) * weight. Every row of both is written.
 */
#define AXISCAP_ADD_CAP_NORM 4

/**
 * A launch that starts when the previous one on its stream has ended.
 */
#define AXISCAP_OVERLAP_NONE 0

/**
 * A launch that may start while the previous one ends (programmatic dependent launch). The previous kernel
 * must not write the table or the weight (docs/cuda.md). Before compute capability 9.0 it is as
 * AXISCAP_OVERLAP_NONE.
 */
#define AXISCAP_OVERLAP_PROGRAMMATIC 1

/**
 * What a call returns. The numbers do not change within a version of the interface, and later versions may
 * add to them.
 */
typedef enum {
  /**
   * The call did what it should.
   */
  AXISCAP_STATUS_OK = 0,
  /**
   * A pointer is NULL that must not be.
   */
  AXISCAP_STATUS_NULL_POINTER = 1,
  /**
   * A pointer is not aligned for what it points to.
   */
  AXISCAP_STATUS_MISALIGNED = 2,
  /**
   * Lengths or strides overflow the address space.
   */
  AXISCAP_STATUS_OVERFLOW = 3,
  /**
   * A number is none of the constants that are meant, or fields of a job contradict each other.
   */
  AXISCAP_STATUS_INVALID_ARGUMENT = 4,
  /**
   * Widths differ that must be equal, or are 0.
   */
  AXISCAP_STATUS_WIDTH = 5,
  /**
   * A stride is smaller than the width.
   */
  AXISCAP_STATUS_STRIDE = 6,
  /**
   * The number of profiles or statistics is wrong.
   */
  AXISCAP_STATUS_COUNT = 7,
  /**
   * A row asks for a profile that the table does not have.
   */
  AXISCAP_STATUS_PROFILE = 8,
  /**
   * A bound is NaN, or no projection is within the bounds.
   */
  AXISCAP_STATUS_BOUND = 9,
  /**
   * A strength is not from 0 to 1.
   */
  AXISCAP_STATUS_STRENGTH = 10,
  /**
   * An epsilon is negative, infinite or NaN.
   */
  AXISCAP_STATUS_EPSILON = 11,
  /**
   * An index names no cap.
   */
  AXISCAP_STATUS_NO_SUCH_CAP = 12,
  /**
   * There is no cap on the block.
   */
  AXISCAP_STATUS_NO_CAPS = 13,
  /**
   * More caps, profiles or rows than a table or a launch takes.
   */
  AXISCAP_STATUS_TOO_MANY = 14,
  /**
   * The caller's array is too short.
   */
  AXISCAP_STATUS_TOO_SHORT = 15,
  /**
   * The system could not read a file.
   */
  AXISCAP_STATUS_IO = 16,
  /**
   * The bytes are no GGUF file: cut short, damaged, or of another format.
   */
  AXISCAP_STATUS_MALFORMED = 17,
  /**
   * A file of a version or kind that this library does not know.
   */
  AXISCAP_STATUS_UNSUPPORTED = 18,
  /**
   * A field of a file is missing, or holds a value that it cannot have.
   */
  AXISCAP_STATUS_INVALID_FILE = 19,
  /**
   * A control vector without bounds, where caps are needed.
   */
  AXISCAP_STATUS_CONTROL_VECTOR = 20,
  /**
   * The caps are for a model of another width or another number of blocks.
   */
  AXISCAP_STATUS_OTHER_MODEL = 21,
  /**
   * The library was built without its feature `cuda`.
   */
  AXISCAP_STATUS_NO_CUDA = 22,
  /**
   * The NVIDIA driver's library cannot be loaded.
   */
  AXISCAP_STATUS_NO_DRIVER = 23,
  /**
   * The driver shows no such GPU.
   */
  AXISCAP_STATUS_NO_DEVICE = 24,
  /**
   * The driver is older than the toolkit that compiled the kernels.
   */
  AXISCAP_STATUS_DRIVER_TOO_OLD = 25,
  /**
   * The library holds no code that runs on this GPU.
   */
  AXISCAP_STATUS_NO_DEVICE_CODE = 26,
  /**
   * A call of the driver failed, perhaps because of earlier work on the GPU.
   */
  AXISCAP_STATUS_DRIVER = 27,
  /**
   * The stream is being captured, and the call cannot be part of a graph.
   */
  AXISCAP_STATUS_CAPTURING = 28,
  /**
   * A table has another shape than the one that it should replace.
   */
  AXISCAP_STATUS_TABLE_SHAPE = 29,
  /**
   * A fault of the library. Please report it with the message.
   */
  AXISCAP_STATUS_INTERNAL = 30,
} axiscap_status;

/**
 * The content of a cap file: caps, the model they are for, and the rows that they leave alone.
 */
typedef struct axiscap_caps axiscap_caps;

/**
 * A GPU with the kernels loaded into its primary context, which is also the CUDA runtime's.
 */
typedef struct axiscap_device axiscap_device;

/**
 * A table of caps in the memory of a GPU. Its addresses stay the same while its values change.
 */
typedef struct axiscap_device_table axiscap_device_table;

/**
 * The caps of one block in contiguous memory.
 */
typedef struct axiscap_table axiscap_table;

/**
 * What axiscap_caps_describe tells.
 */
typedef struct {
  /**
   * Values per axis: the width of the model's residual stream (n_embd).
   */
  size_t width;
  /**
   * Number of caps, at least 1.
   */
  size_t cap_count;
  /**
   * Number of blocks of the model.
   */
  size_t block_count;
  /**
   * Number of blocks that have caps. axiscap_caps_blocks lists them.
   */
  size_t capped_block_count;
  /**
   * The policy of the caps: the number of first positions of every sequence whose rows are left alone.
   * This library knows rows and not their positions, so the caller obeys it: it leaves these rows out, or
   * gives them profile 0. 0 caps every row.
   */
  uint32_t skip_positions;
  /**
   * The model's architecture, e.g. "llama".
   */
  const char *architecture;
  /**
   * The model's name, or NULL if the file has none.
   */
  const char *model;
  /**
   * What a positive projection means, e.g. "more Assistant", or NULL.
   */
  const char *orientation;
} axiscap_caps_info;

/**
 * What axiscap_caps_get tells.
 */
typedef struct {
  /**
   * The 0-based block on whose output the cap acts. Caps on one block act in the order of their indices.
   */
  size_t block;
  /**
   * The lower bound of the projection, -INFINITY if there is none.
   */
  float floor;
  /**
   * The upper bound of the projection, +INFINITY if there is none.
   */
  float ceiling;
  /**
   * From 0 (observes) to 1 (moves the projection onto the bound).
   */
  float strength;
  /**
   * The norm that the axis had before it was made a unit vector, or 0 if unknown.
   */
  float norm;
  /**
   * The unit axis, as many values as the caps are wide.
   */
  const float *axis;
  /**
   * The name, e.g. "assistant", or NULL if the cap has none.
   */
  const char *name;
} axiscap_cap_info;

/**
 * What axiscap_table_describe tells.
 */
typedef struct {
  /**
   * Width of the rows that this table caps.
   */
  size_t width;
  /**
   * Number of caps, over all profiles.
   */
  size_t cap_count;
  /**
   * Number of profiles, including the empty profile 0.
   */
  size_t profile_count;
  /**
   * Number of caps of the longest profile. Statistics have that many entries per row.
   */
  size_t max_caps_per_row;
} axiscap_table_info;

/**
 * The effect of one cap on one row.
 */
typedef struct {
  /**
   * Projection of the row on the axis before this cap, after the earlier caps of the same block.
   */
  float before;
  /**
   * Projection after this cap: the bound if the cap acted with strength 1. The capped row is not projected
   * again, so its own projection differs by rounding.
   */
  float after;
  /**
   * AXISCAP_ENGAGED, AXISCAP_NON_FINITE, AXISCAP_BAD_PROFILE, or 0.
   */
  uint32_t flags;
} axiscap_row_stat;

/**
 * A call on rows: what axiscap_run does in host memory, and axiscap_launch in the memory of a GPU. All
 * pointers are to that memory.
 *
 * Set it to zeros first, then the fields that the operation uses. A pointer that it does not use stays NULL.
 *
 * Rows of one pointer must not overlap each other. x and residual may be exactly the rows of h, with one
 * pointer and stride. Apart from that, memory that is written must overlap nothing else of the call.
 */
typedef struct {
  /**
   * sizeof(axiscap_job). Another number is refused, because the caller then has another version's header.
   */
  size_t size;
  /**
   * AXISCAP_CAP, AXISCAP_ADD_CAP, AXISCAP_CAP_NORM or AXISCAP_ADD_CAP_NORM.
   */
  uint32_t operation;
  /**
   * The type of the values of h, x, residual and normed: AXISCAP_F32, AXISCAP_F16 or AXISCAP_BF16.
   */
  uint32_t dtype;
  /**
   * Number of rows. With 0 the pointers of rows may be NULL.
   */
  size_t rows;
  /**
   * Values per row: the table's width.
   */
  size_t width;
  /**
   * The rows that are capped in place, or that take the capped sum. All operations use it.
   */
  void *h;
  /**
   * Values (not bytes) from one row of h to the next, at least the width. What lies between the rows is
   * neither read nor written. A multiple of 16 bytes is faster, for pointers as well.
   */
  size_t h_stride;
  /**
   * The first summand.
   */
  const void *x;
  /**
   * Values from one row of x to the next.
   */
  size_t x_stride;
  /**
   * The second summand. For an addition in place it is h, with the stride of h.
   */
  const void *residual;
  /**
   * Values from one row of residual to the next.
   */
  size_t residual_stride;
  /**
   * The normed rows.
   */
  void *normed;
  /**
   * Values from one row of normed to the next.
   */
  size_t normed_stride;
  /**
   * The weight of the norm, one float per value of a row.
   */
  const float *weight;
  /**
   * What the norm adds to the mean of the squares: the model's own, e.g. 1e-5.
   */
  float epsilon;
  /**
   * The profile of each row. NULL gives every row profile 1. Profile 0 leaves a row uncapped.
   */
  const uint32_t *profiles;
  /**
   * Number of profiles: that of the rows, or 0 with NULL.
   */
  size_t profile_count;
  /**
   * Where statistics go, `[rows][max_caps_per_row]` with the number that axiscap_table_describe tells. NULL
   * asks for none. Entries beyond the caps of a row's profile become zero.
   */
  axiscap_row_stat *stats;
  /**
   * Number of statistics: rows * max_caps_per_row, or 0 with NULL.
   */
  size_t stat_count;
} axiscap_job;

/**
 * What axiscap_device_describe tells.
 */
typedef struct {
  /**
   * The GPU's name.
   */
  const char *name;
  /**
   * Compute capability, e.g. 90 for 9.0.
   */
  uint32_t compute_capability;
  /**
   * The newest CUDA version that the driver supports: 1000 * major + 10 * minor.
   */
  uint32_t driver_version;
} axiscap_device_info;

/**
 * Rows with a profile that the table does not have. They went uncapped, so treat them as an error.
 */
typedef struct {
  /**
   * Number of rows since the upload, or since the record was cleared. 0 is no fault.
   */
  uint64_t rows;
  /**
   * The lowest row, as an index into the rows of its launch.
   */
  uint32_t row;
  /**
   * The profile index of that row.
   */
  uint32_t profile;
} axiscap_profile_faults;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Returns the version of the library, e.g. "0.1.0". Before 1.0 another minor version is another interface.
 *
 * The text is static. Any thread may call this.
 */
const char *axiscap_version(void);

/**
 * Returns the message of the last call that failed on this thread, in UTF-8: what is wrong, and what to do.
 * The text is empty if no call has failed. A call that succeeds keeps the message.
 *
 * Ownership: the library owns the text. It is valid until another call fails on this thread, or until the
 * thread ends.
 *
 * Threads: every thread has its own message. Ask on the thread on which the call failed.
 */
const char *axiscap_last_error(void);

/**
 * Reads a cap file (docs/cap-files.md). The file may come from a stranger: counts and lengths are checked
 * before memory is allocated, and nothing is executed. Fails with AXISCAP_STATUS_IO, _MALFORMED,
 * _UNSUPPORTED, _INVALID_FILE or _CONTROL_VECTOR.
 *
 * On Linux and macOS a path is bytes, as for fopen. Elsewhere it is UTF-8.
 *
 * Ownership: *out belongs to the caller, who frees it with axiscap_caps_free.
 *
 * Threads: any number may read files at once.
 *
 * # Safety
 * `path` is NULL or a C string. `out` is NULL or writable.
 */
axiscap_status axiscap_caps_read(const char *path,
                                 axiscap_caps **out);

/**
 * Reads a cap file from memory. Fails as axiscap_caps_read does, without the status for the system.
 *
 * Ownership: the bytes are not kept. *out belongs to the caller, who frees it with axiscap_caps_free.
 *
 * Threads: any number may parse at once.
 *
 * # Safety
 * `bytes` is NULL or points to `length` bytes. `out` is NULL or writable.
 */
axiscap_status axiscap_caps_parse(const void *bytes,
                                  size_t length,
                                  axiscap_caps **out);

/**
 * Frees caps; does nothing for NULL. Texts and axes of the caps go with them. Tables that were made from
 * them stay as they are.
 *
 * Threads: nothing may use the caps during the call or later.
 *
 * # Safety
 * `caps` is NULL, or a handle that has not been freed.
 */
void axiscap_caps_free(axiscap_caps *caps);

/**
 * Describes caps and the model that they are for.
 *
 * Ownership: the texts are UTF-8 and belong to the caps. They are valid until axiscap_caps_free. A NUL inside
 * of a text of the file is replaced by U+FFFD.
 *
 * Threads: any number may call this with the same caps.
 *
 * # Safety
 * `caps` is NULL or a live handle. `out` is NULL or writable.
 */
axiscap_status axiscap_caps_describe(const axiscap_caps *caps,
                                     axiscap_caps_info *out);

/**
 * Checks that caps are for a model of this width and number of blocks. Fails with
 * AXISCAP_STATUS_OTHER_MODEL. Compare the architecture with the one that axiscap_caps_describe tells: another
 * one is a warning, because a model may have two names.
 *
 * Threads: any number may call this with the same caps.
 *
 * # Safety
 * `caps` is NULL or a live handle.
 */
axiscap_status axiscap_caps_check_model(const axiscap_caps *caps,
                                        size_t width,
                                        size_t block_count);

/**
 * Lists the capped blocks in ascending order. A block is 0-based, and its caps act on its output (llama.cpp's
 * node l_out-N). *count becomes their number, also if `capacity` is smaller, which is
 * AXISCAP_STATUS_TOO_SHORT and stores no block. With a capacity of 0 and `blocks` NULL the call succeeds and
 * only counts.
 *
 * Ownership: both arrays are the caller's.
 *
 * Threads: any number may call this with the same caps.
 *
 * # Safety
 * `caps` is NULL or a live handle. `blocks` is NULL or has space for `capacity` values. `count` is NULL or
 * writable.
 */
axiscap_status axiscap_caps_blocks(const axiscap_caps *caps,
                                   size_t *blocks,
                                   size_t capacity,
                                   size_t *count);

/**
 * Describes one cap, by its index below cap_count. Fails with AXISCAP_STATUS_NO_SUCH_CAP.
 *
 * Ownership: axis and name belong to the caps. They are valid until axiscap_caps_free, also when bounds and
 * strengths change.
 *
 * Threads: any number may call this with the same caps.
 *
 * # Safety
 * `caps` is NULL or a live handle. `out` is NULL or writable.
 */
axiscap_status axiscap_caps_get(const axiscap_caps *caps,
                                size_t index,
                                axiscap_cap_info *out);

/**
 * Changes the bounds of one cap. -INFINITY and +INFINITY stand for no bound. Fails with
 * AXISCAP_STATUS_NO_SUCH_CAP, or with AXISCAP_STATUS_BOUND for NaN and for bounds that no projection
 * satisfies. The caps are then unchanged. Tables that were made before keep their bounds.
 *
 * Threads: no other thread may use the caps in the meantime.
 *
 * # Safety
 * `caps` is NULL or a live handle that nothing else uses.
 */
axiscap_status axiscap_caps_set_bound(axiscap_caps *caps,
                                      size_t index,
                                      float floor,
                                      float ceiling);

/**
 * Changes the strength of one cap. Fails with AXISCAP_STATUS_NO_SUCH_CAP or AXISCAP_STATUS_STRENGTH. The caps
 * are then unchanged. Tables that were made before keep their strengths.
 *
 * Threads: no other thread may use the caps in the meantime.
 *
 * # Safety
 * `caps` is NULL or a live handle that nothing else uses.
 */
axiscap_status axiscap_caps_set_strength(axiscap_caps *caps,
                                         size_t index,
                                         float strength);

/**
 * Makes a table of the caps on one block, which axiscap_run takes and axiscap_device_table_new copies to a
 * GPU.
 *
 * Each set of caps becomes a profile: `sets[0]` is profile 1, which rows have by default, `sets[1]` is
 * profile 2, and so on. Profile 0 is empty. A set without caps on the block is an empty profile. Fails with
 * AXISCAP_STATUS_NO_CAPS if no set has caps on the block, with AXISCAP_STATUS_WIDTH if the sets differ in
 * width, and with AXISCAP_STATUS_TOO_MANY above 65536 caps or sets.
 *
 * Ownership: the table is a copy, and the sets may be freed at once. *out belongs to the caller, who frees it
 * with axiscap_table_free.
 *
 * Threads: any number may make tables of the same sets.
 *
 * # Safety
 * `sets` is NULL or an array of `set_count` pointers, each NULL or a live handle. `out` is NULL or writable.
 */
axiscap_status axiscap_table_new(axiscap_caps *const *sets,
                                 size_t set_count,
                                 size_t block,
                                 axiscap_table **out);

/**
 * Describes a table.
 *
 * Threads: any number may call this with the same table.
 *
 * # Safety
 * `table` is NULL or a live handle. `out` is NULL or writable.
 */
axiscap_status axiscap_table_describe(const axiscap_table *table, axiscap_table_info *out);

/**
 * Frees a table; does nothing for NULL. Its copies on GPUs stay as they are.
 *
 * Threads: nothing may use the table during the call or later.
 *
 * # Safety
 * `table` is NULL, or a handle that has not been freed.
 */
void axiscap_table_free(axiscap_table *table);

/**
 * Changes the bounds of one cap of a table. `cap` counts the caps of all profiles in order. -INFINITY and
 * +INFINITY stand for no bound. Fails with AXISCAP_STATUS_NO_SUCH_CAP or AXISCAP_STATUS_BOUND, and the table
 * is then unchanged. Copies on GPUs change with axiscap_device_table_update.
 *
 * Threads: no other thread may use the table in the meantime.
 *
 * # Safety
 * `table` is NULL or a live handle that nothing else uses.
 */
axiscap_status axiscap_table_set_bound(axiscap_table *table,
                                       size_t cap,
                                       float floor,
                                       float ceiling);

/**
 * Changes the strength of one cap of a table, from 0 (observes) to 1 (moves the projection onto the bound).
 * `cap` counts the caps of all profiles in order. Fails with AXISCAP_STATUS_NO_SUCH_CAP or
 * AXISCAP_STATUS_STRENGTH, and the table is then unchanged.
 *
 * Threads: no other thread may use the table in the meantime.
 *
 * # Safety
 * `table` is NULL or a live handle that nothing else uses.
 */
axiscap_status axiscap_table_set_strength(axiscap_table *table,
                                          size_t cap,
                                          float strength);

/**
 * Runs a call on rows in host memory, on the calling thread, with the fastest instruction set of the machine.
 * The bits of the result do not depend on either (docs/operation.md).
 *
 * On an error no row is written, and statistics may have become zero. The errors of this call are
 * AXISCAP_STATUS_NULL_POINTER, _MISALIGNED, _OVERFLOW, _INVALID_ARGUMENT, _WIDTH, _STRIDE, _COUNT, _PROFILE
 * and _EPSILON. A row with NaN or infinities is no error. If its projection is not finite, the row stays
 * unchanged, and its statistics are flagged AXISCAP_NON_FINITE.
 *
 * Ownership: all memory of the job is the caller's, and nothing of it is kept.
 *
 * Threads: any number may call this with the same table, on rows that do not overlap. To share a batch, give
 * each thread some of its rows. The first call on a thread with 16-bit rows allocates four rows of floats,
 * which are freed when the thread ends.
 *
 * # Safety
 * `table` is NULL or a live handle. `job` is NULL or describes live memory: rows that are read, weight and
 * profiles are initialised, and nothing else writes them or uses what the call writes.
 */
axiscap_status axiscap_run(const axiscap_table *table,
                           const axiscap_job *job);

/**
 * Counts the GPUs of the machine. Loads the NVIDIA driver's library if it is there. Fails with
 * AXISCAP_STATUS_NO_CUDA in a library for the CPU alone, AXISCAP_STATUS_NO_DRIVER, AXISCAP_STATUS_NO_DEVICE
 * or AXISCAP_STATUS_DRIVER.
 *
 * Threads: any number may call this.
 *
 * # Safety
 * `count` is NULL or writable.
 */
axiscap_status axiscap_device_count(size_t *count);

/**
 * Opens a GPU by CUDA's index: checks driver and device code, and loads all kernels. A capture therefore loads
 * nothing. Every call with the device or its tables makes the primary context current, and restores the
 * previous one. Fails with AXISCAP_STATUS_NO_CUDA in a library for the CPU alone, AXISCAP_STATUS_NO_DRIVER,
 * _NO_DEVICE, _DRIVER_TOO_OLD, _NO_DEVICE_CODE or _DRIVER. The message says what to do.
 *
 * Ownership: *out belongs to the caller, who frees it with axiscap_device_free. A GPU that is opened twice is
 * loaded once.
 *
 * Threads: any number may open GPUs.
 *
 * # Safety
 * `out` is NULL or writable.
 */
axiscap_status axiscap_device_open(size_t ordinal,
                                   axiscap_device **out);

/**
 * Describes a GPU.
 *
 * Ownership: the name belongs to the device. It is valid until axiscap_device_free.
 *
 * Threads: any number may call this with the same device.
 *
 * # Safety
 * `device` is NULL or a live handle. `out` is NULL or writable.
 */
axiscap_status axiscap_device_describe(const axiscap_device *device, axiscap_device_info *out);

/**
 * Frees a device; does nothing for NULL. Tables on it stay usable, and the kernels stay loaded until the last
 * of them is freed. An error of the driver is returned by the next call on the same GPU.
 *
 * Threads: nothing may use the device during the call or later.
 *
 * # Safety
 * `device` is NULL, or a handle that has not been freed.
 */
void axiscap_device_free(axiscap_device *device);

/**
 * Copies a table to a GPU, and waits for the copy. Fails with AXISCAP_STATUS_DRIVER.
 *
 * Ownership: device and table may be freed at once. *out belongs to the caller, who frees it with
 * axiscap_device_table_free.
 *
 * Threads: any number may call this with the same device and table.
 *
 * # Safety
 * `device` and `table` are NULL or live handles. `out` is NULL or writable.
 */
axiscap_status axiscap_device_table_new(const axiscap_device *device,
                                        const axiscap_table *table,
                                        axiscap_device_table **out);

/**
 * Replaces the values of a table on a GPU by those of a table of the same shape, in stream order. Launches
 * that are already on the stream use the old values, later ones and replays of a captured one the new. Fails
 * with AXISCAP_STATUS_TABLE_SHAPE, with AXISCAP_STATUS_CAPTURING inside of a capture, and with
 * AXISCAP_STATUS_DRIVER. It waits only if eight updates are in progress.
 *
 * Ownership: the values are copied before this returns, and `table` may change at once.
 *
 * Threads: any number may call this with the same handles. Launches on other streams may see a part of the
 * new values.
 *
 * # Safety
 * `on_gpu` and `table` are NULL or live handles. `stream` is a CUstream or cudaStream_t of the primary
 * context of the table's GPU, or NULL for the default stream.
 */
axiscap_status axiscap_device_table_update(const axiscap_device_table *on_gpu,
                                           const axiscap_table *table,
                                           void *stream);

/**
 * Frees a table on a GPU; does nothing for NULL. Waits for all work of the GPU, which a capture on it does
 * not survive. An error of the driver is returned by the next call on the same GPU.
 *
 * Threads: nothing may use the table during the call or later, nor may a captured launch be replayed.
 *
 * # Safety
 * `table` is NULL, or a handle that has not been freed.
 */
void axiscap_device_table_free(axiscap_device_table *table);

/**
 * Puts a call on a stream and returns at once. The result has the bits of axiscap_run. All pointers of the
 * job are addresses on the table's GPU, and statistics are there as well. The job itself is in host memory.
 * Works inside of a capture.
 *
 * Fails with the errors of axiscap_run apart from AXISCAP_STATUS_PROFILE, with AXISCAP_STATUS_TOO_MANY and
 * with AXISCAP_STATUS_DRIVER. A row whose profile does not exist goes uncapped, and
 * axiscap_device_table_faults tells.
 *
 * Ownership: the job is not kept. Its memory and the table have to stay until the stream has passed the
 * launch, or the last replay of a captured one.
 *
 * Threads: any number may call this with the same table.
 *
 * # Safety
 * `table` is NULL or a live handle. `job` is NULL or describes live memory of the table's GPU, as for
 * axiscap_run, until the stream has passed the launch. `stream` is a CUstream or cudaStream_t of the primary
 * context of the table's GPU, or NULL for the default stream.
 */
axiscap_status axiscap_launch(const axiscap_device_table *table,
                              const axiscap_job *job,
                              void *stream,
                              uint32_t overlap);

/**
 * Tells which rows went uncapped because their profile does not exist. Waits for everything that is on the
 * stream now. Fails with AXISCAP_STATUS_CAPTURING inside of a capture, and with AXISCAP_STATUS_DRIVER, also
 * for errors of earlier work on the stream.
 *
 * Threads: any number may call this with the same table.
 *
 * # Safety
 * `table` is NULL or a live handle. `stream` is a CUstream or cudaStream_t of the primary context of the
 * table's GPU, or NULL for the default stream. `out` is NULL or writable.
 */
axiscap_status axiscap_device_table_faults(const axiscap_device_table *table,
                                           void *stream,
                                           axiscap_profile_faults *out);

/**
 * Clears the record of axiscap_device_table_faults in stream order. Can be captured. Fails with
 * AXISCAP_STATUS_DRIVER.
 *
 * Threads: any number may call this with the same table.
 *
 * # Safety
 * `table` is NULL or a live handle. `stream` is a CUstream or cudaStream_t of the primary context of the
 * table's GPU, or NULL for the default stream.
 */
axiscap_status axiscap_device_table_clear_faults(const axiscap_device_table *table,
                                                 void *stream);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* AXISCAP_H */
