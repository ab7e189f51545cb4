/* Caps rows on the CPU with the caps of a file, and checks the projections of the capped rows itself. The file has one
 * cap of strength 1 per block.
 *
 *     cc cap-rows.c $(pkg-config --cflags --libs axiscap) -lm -o cap-rows
 *     ./cap-rows lab/assets/smollm2-135m-instruct.caps.gguf
 */

#include <axiscap.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 64 };

/* Ends the program with the library's message if a call has failed. */
static void check(axiscap_status status) {
  if (status != AXISCAP_STATUS_OK) {
    fprintf(stderr, "cap-rows: %s\n", axiscap_last_error());
    exit(1);
  }
}

static void *memory(size_t count, size_t size) {
  void *values = calloc(count, size);
  if (values == NULL) {
    fprintf(stderr, "cap-rows: no memory\n");
    exit(1);
  }
  return values;
}

/* A number in [-1, 1), the same in every run. */
static float random_number(void) {
  static uint32_t state = 1;
  state = state * 1664525u + 1013904223u;
  return (float)(state >> 8) / 8388608.0f - 1.0f;
}

static double dot(const float *a, const float *b, size_t width) {
  double sum = 0.0;
  for (size_t i = 0; i < width; i++) sum += (double)a[i] * b[i];
  return sum;
}

/* Makes a row like those of a residual stream: noise, and a part along the axis. The projections of the rows spread
 * around the bound. */
static void make_row(float *row, const axiscap_cap_info *cap, size_t width, size_t index) {
  float along = isfinite(cap->floor) ? cap->floor : cap->ceiling;
  along += (float)index - ROWS / 2.0f;
  for (size_t i = 0; i < width; i++) row[i] = random_number() + along * cap->axis[i];
}

/* Whether a capped row is what the cap promises. Inside of the bounds it keeps its bytes. Otherwise its projection is
 * on the bound, within the rounding that docs/operation.md allows for rows of this width. */
static int is_capped(const float *before, const float *after, const axiscap_cap_info *cap,
                     const axiscap_row_stat *stat, size_t width) {
  double projection = dot(after, cap->axis, width);
  double u = ldexp(1.0, -24);
  double moved = fabs((double)stat->after - stat->before);
  double allowed = 32.0 * u * (fabs(stat->after) + sqrt(dot(after, after, width))) + 4.0 * u * moved;
  if (!(stat->flags & AXISCAP_ENGAGED)) return memcmp(before, after, width * sizeof *after) == 0;
  if (stat->after != cap->floor && stat->after != cap->ceiling) return 0;
  return fabs(projection - stat->after) <= allowed;
}

/* Caps rows with the one cap of a block. Returns how many rows it has moved. */
static size_t cap_block(axiscap_caps *caps, const axiscap_cap_info *cap, size_t width) {
  axiscap_table *table = NULL;
  check(axiscap_table_new(&caps, 1, cap->block, &table));

  float *rows = memory(ROWS * width, sizeof *rows);
  float *before = memory(ROWS * width, sizeof *before);
  axiscap_row_stat *stats = memory(ROWS, sizeof *stats);
  for (size_t row = 0; row < ROWS; row++) make_row(rows + row * width, cap, width, row);
  memcpy(before, rows, ROWS * width * sizeof *rows);

  axiscap_job job;
  memset(&job, 0, sizeof job);
  job.size = sizeof job;
  job.operation = AXISCAP_CAP;
  job.dtype = AXISCAP_F32;
  job.rows = ROWS;
  job.width = width;
  job.h = rows;
  job.h_stride = width;
  job.stats = stats;
  job.stat_count = ROWS;
  check(axiscap_run(table, &job));

  size_t engaged = 0;
  for (size_t row = 0; row < ROWS; row++) {
    engaged += stats[row].flags & AXISCAP_ENGAGED;
    if (!is_capped(before + row * width, rows + row * width, cap, &stats[row], width)) {
      fprintf(stderr, "cap-rows: block %zu, row %zu: not capped\n", cap->block, row);
      exit(1);
    }
  }
  free(stats);
  free(before);
  free(rows);
  axiscap_table_free(table);
  return engaged;
}

int main(int argc, char **argv) {
  if (argc != 2) {
    fprintf(stderr, "usage: cap-rows CAPS.gguf\n");
    return 2;
  }
  axiscap_caps *caps = NULL;
  check(axiscap_caps_read(argv[1], &caps));
  axiscap_caps_info info;
  check(axiscap_caps_describe(caps, &info));
  printf("axiscap %s: %zu caps of width %zu for %s with %zu blocks\n", axiscap_version(), info.cap_count, info.width,
         info.architecture, info.block_count);
  if (info.cap_count != info.capped_block_count) {
    fprintf(stderr, "cap-rows: this example is for one cap per block\n");
    axiscap_caps_free(caps);
    return 1;
  }
  for (size_t index = 0; index < info.cap_count; index++) {
    axiscap_cap_info cap;
    check(axiscap_caps_get(caps, index, &cap));
    size_t engaged = cap_block(caps, &cap, info.width);
    printf("block %2zu, floor %9.4f: %zu of %d rows moved, all projections within the bounds\n", cap.block, cap.floor,
           engaged, ROWS);
    if (engaged == 0 || engaged == ROWS) {
      fprintf(stderr, "cap-rows: the rows should lie on both sides of the bound\n");
      axiscap_caps_free(caps);
      return 1;
    }
  }
  axiscap_caps_free(caps);
  return 0;
}
