/* A plugin for qemu-user (interface version 1, Debian 12's qemu 7.2): how many instructions of a program ran, by the file that they
   were mapped from. Writes lines "<count> <path>" to the file that `out=` names, when the program ends. Programs of one thread.

   The interface is declared here, so that no header of qemu is needed. */
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

typedef uint64_t plugin_id;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef struct qemu_info_t qemu_info_t;

#define EXPORT __attribute__((visibility("default")))
EXPORT int qemu_plugin_version = 1;

extern void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct qemu_plugin_tb *));
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int op, void *counter, uint64_t add);
extern void qemu_plugin_register_atexit_cb(plugin_id, void (*)(plugin_id, void *), void *);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
extern void *qemu_plugin_insn_haddr(const struct qemu_plugin_insn *);

enum { ADD = 0, FILES = 512, RANGES = 4096, NAME = 512 };
static struct { char name[NAME]; uint64_t count; } files[FILES] = {{"(other)", 0}};
static struct { uintptr_t begin, end; int file; } ranges[RANGES];
static int num_files = 1, num_ranges;
static char out[NAME];

static int file_number(const char *name) {
  for (int i = 1; i < num_files; ++i)
    if (strcmp(files[i].name, name) == 0) return i;
  if (num_files == FILES) return 0;
  snprintf(files[num_files].name, NAME, "%s", name);
  return num_files++;
}

/* The program's memory is this process's: what is mapped where stands in its own table. */
static void read_ranges(void) {
  FILE *maps = fopen("/proc/self/maps", "r");
  char line[1024];
  num_ranges = 0;
  while (maps && fgets(line, sizeof line, maps) && num_ranges < RANGES) {
    uintptr_t begin, end;
    int at = 0;
    if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " %*s %*s %*s %*s %n", &begin, &end, &at) < 2 || line[at] != '/') continue;
    line[strcspn(line, "\n")] = 0;
    ranges[num_ranges].begin = begin, ranges[num_ranges].end = end, ranges[num_ranges].file = file_number(line + at);
    ++num_ranges;
  }
  if (maps) fclose(maps);
}

static int find(uintptr_t at) {
  for (int i = 0; i < num_ranges; ++i)
    if (at >= ranges[i].begin && at < ranges[i].end) return ranges[i].file;
  return -1;
}

static void translated(plugin_id id, struct qemu_plugin_tb *tb) {
  (void)id;
  uintptr_t at = (uintptr_t)qemu_plugin_insn_haddr(qemu_plugin_tb_get_insn(tb, 0));
  int file = find(at);
  if (file < 0) read_ranges(), file = find(at);
  qemu_plugin_register_vcpu_tb_exec_inline(tb, ADD, &files[file < 0 ? 0 : file].count, qemu_plugin_tb_n_insns(tb));
}

static void ended(plugin_id id, void *data) {
  (void)id, (void)data;
  FILE *to = fopen(out, "w");
  for (int i = 0; to && i < num_files; ++i)
    if (files[i].count) fprintf(to, "%" PRIu64 " %s\n", files[i].count, files[i].name);
  if (to) fclose(to);
}

EXPORT int qemu_plugin_install(plugin_id id, const qemu_info_t *info, int argc, char **argv) {
  (void)info;
  for (int i = 0; i < argc; ++i)
    if (strncmp(argv[i], "out=", 4) == 0) snprintf(out, NAME, "%s", argv[i] + 4);
  if (!out[0]) return fprintf(stderr, "count_instructions: out=FILE is missing\n"), 1;
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_atexit_cb(id, ended, NULL);
  return 0;
}
