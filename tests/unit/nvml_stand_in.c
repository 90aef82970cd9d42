/* A stand-in libnvidia-ml.so.1: answers from the lines "key value" of the file that NVML_STAND_IN names.
   A key that is missing is not supported; the value "error N" is NVML's error N; "hang" never returns. Keys of a card
   begin with its index and a dot. Only for tests of the real binding, which loads it as it would load the driver's. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned int u32;
typedef unsigned long long u64;
#define NOT_SUPPORTED 3

static int look(const char *key, char *value, size_t size) {
    char line[512], name[128];
    FILE *file = fopen(getenv("NVML_STAND_IN"), "r");
    if (!file) return NOT_SUPPORTED;
    int result = NOT_SUPPORTED;
    while (fgets(line, sizeof line, file)) {
        char *space = strchr(line, ' ');
        if (!space) continue;
        *space = 0;
        snprintf(name, sizeof name, "%s", line);
        if (strcmp(name, key)) continue;
        space[1 + strcspn(space + 1, "\n")] = 0;
        if (!strncmp(space + 1, "error ", 6)) result = atoi(space + 7);
        else { snprintf(value, size, "%s", space + 1); result = 0; }
    }
    fclose(file);
    while (!result && !strcmp(value, "hang")) sleep(1);
    return result;
}

static int card(void *handle, const char *name, char *value, size_t size) {
    char key[128];
    snprintf(key, sizeof key, "%ld.all", (long)handle - 1); /* an error of the whole card */
    int all = look(key, value, size);
    if (all != NOT_SUPPORTED) return all;
    snprintf(key, sizeof key, "%ld.%s", (long)handle - 1, name);
    return look(key, value, size);
}

static int number(void *handle, const char *name, u64 *out) {
    char value[256];
    int result = card(handle, name, value, sizeof value);
    if (!result) *out = strtoull(value, 0, 0);
    return result;
}

static int small(void *handle, const char *name, u32 *out) {
    u64 value;
    int result = number(handle, name, &value);
    if (!result) *out = (u32)value;
    return result;
}

#define SMALL(function, key) int function(void *h, u32 *out) { return small(h, key, out); }
#define WIDE(function, key) int function(void *h, u64 *out) { return number(h, key, out); }
#define TEXT(function, key) int function(void *h, char *out, u32 n) { return card(h, key, out, n); }

int nvmlInit_v2(void) { char v[64]; int r = look("init", v, sizeof v); return r == NOT_SUPPORTED ? 0 : r; }
int nvmlInitWithFlags(u32 flags) { (void)flags; return nvmlInit_v2(); }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { static char text[32]; snprintf(text, sizeof text, "error %d", code); return text; }
int nvmlSystemGetDriverVersion(char *out, u32 n) { return look("driver", out, n); }
int nvmlSystemGetCudaDriverVersion(int *out) { char v[64]; int r = look("cuda", v, sizeof v); if (!r) *out = atoi(v); return r; }
int nvmlDeviceGetCount_v2(u32 *out) { char v[64]; int r = look("count", v, sizeof v); if (!r) *out = atoi(v); return r; }
int nvmlDeviceGetHandleByIndex_v2(u32 index, void **out) {
    char v[256];
    *out = (void *)(long)(index + 1);
    return card(*out, "uuid", v, sizeof v);
}
int nvmlDeviceGetHandleByUUID(const char *uuid, void **out) {
    char v[256];
    for (long index = 0; index < 16; index++) {
        int result = card((void *)(index + 1), "uuid", v, sizeof v);
        char key[64], again[256];
        snprintf(key, sizeof key, "%ld.uuid", index);
        if (look(key, again, sizeof again) || strcmp(again, uuid)) continue;
        *out = (void *)(index + 1);
        return result;
    }
    return 6;
}
TEXT(nvmlDeviceGetUUID, "uuid") TEXT(nvmlDeviceGetName, "name") TEXT(nvmlDeviceGetSerial, "serial")
TEXT(nvmlDeviceGetVbiosVersion, "vbios") TEXT(nvmlDeviceGetBoardPartNumber, "board_part_number")
TEXT(nvmlDeviceGetInforomImageVersion, "inforom")
int nvmlDeviceGetPciInfo_v3(void *h, char *out) { memset(out, 0, 68); return card(h, "pci_bus_id", out + 36, 32); }
int nvmlDeviceGetUtilizationRates(void *h, u32 *out) {
    int r = small(h, "utilisation_percent", out);
    return r ? r : small(h, "memory_utilisation_percent", out + 1);
}
int nvmlDeviceGetMemoryInfo(void *h, u64 *out) { out[1] = 0; int r = number(h, "memory_total_bytes", out); return r ? r : number(h, "memory_used_bytes", out + 2); }
int nvmlDeviceGetMemoryInfo_v2(void *h, u64 *out) { int r = number(h, "memory_total_bytes", out + 1); return r ? r : number(h, "memory_used_bytes", out + 4); }
int nvmlDeviceGetTemperature(void *h, u32 sensor, u32 *out) { (void)sensor; return small(h, "temp_c", out); }
int nvmlDeviceGetTemperatureThreshold(void *h, u32 kind, u32 *out) {
    const char *names[] = {"temp_shutdown_c", "temp_slowdown_c", "memory_temp_max_c", "temp_max_c"};
    return kind < 4 ? small(h, names[kind], out) : NOT_SUPPORTED;
}
int nvmlDeviceGetMarginTemperature(void *h, u32 *out) { return small(h, "margin_c", out + 1); }
SMALL(nvmlDeviceGetPowerUsage, "power_mw") SMALL(nvmlDeviceGetEnforcedPowerLimit, "power_limit_mw")
SMALL(nvmlDeviceGetPowerManagementDefaultLimit, "power_default_mw") SMALL(nvmlDeviceGetPersistenceMode, "persistence")
SMALL(nvmlDeviceGetCurrPcieLinkGeneration, "pcie_gen") SMALL(nvmlDeviceGetCurrPcieLinkWidth, "pcie_width")
SMALL(nvmlDeviceGetMaxPcieLinkGeneration, "pcie_gen_max") SMALL(nvmlDeviceGetMaxPcieLinkWidth, "pcie_width_max")
SMALL(nvmlDeviceGetPcieReplayCounter, "pcie_replays") SMALL(nvmlDeviceGetPerformanceState, "performance_state")
SMALL(nvmlDeviceGetFanSpeed, "fan_percent") WIDE(nvmlDeviceGetCurrentClocksEventReasons, "clock_reasons")
WIDE(nvmlDeviceGetTotalEnergyConsumption, "energy_mj") SMALL(nvmlDeviceGetRetiredPagesPendingStatus, "retired_pending")
int nvmlDeviceGetClockInfo(void *h, u32 kind, u32 *out) { return small(h, kind == 2 ? "memory_clock_mhz" : "clock_mhz", out); }
int nvmlDeviceGetMaxClockInfo(void *h, u32 kind, u32 *out) { (void)kind; return small(h, "clock_max_mhz", out); }
int nvmlDeviceGetEccMode(void *h, u32 *now, u32 *pending) { int r = small(h, "ecc", now); return r ? r : small(h, "ecc_pending", pending); }
int nvmlDeviceGetMigMode(void *h, u32 *now, u32 *pending) { *pending = 0; return small(h, "mig", now); }
int nvmlDeviceGetTotalEccErrors(void *h, u32 kind, u32 counter, u64 *out) {
    char key[64];
    snprintf(key, sizeof key, "ecc_%s%s", kind ? "uncorrected" : "corrected", counter ? "_aggregate" : "");
    return number(h, key, out);
}
int nvmlDeviceGetMemoryErrorCounter(void *h, u32 kind, u32 counter, u32 place, u64 *out) {
    return kind != 1 || place != 7 ? NOT_SUPPORTED : number(h, counter ? "sram_uncorrected_aggregate" : "sram_uncorrected", out);
}
int nvmlDeviceGetRemappedRows(void *h, u32 *a, u32 *b, u32 *c, u32 *d) {
    int r = small(h, "remapped_corrected", a);
    if (!r) r = small(h, "remapped_uncorrected", b);
    if (!r) r = small(h, "remap_pending", c);
    return r ? r : small(h, "remap_failed", d);
}
int nvmlDeviceGetRowRemapperHistogram(void *h, u32 *out) { memset(out, 0, 20); return small(h, "banks_without_spares", out + 4); }
int nvmlDeviceValidateInforom(void *h) { u32 v; return small(h, "inforom_valid", &v); }
struct field { u32 id, scope; long long stamp, latency; u32 kind; int result; union { double d; u64 u; } value; };
int nvmlDeviceGetFieldValues(void *h, int count, struct field *fields) {
    for (int i = 0; i < count; i++) {
        char key[64];
        snprintf(key, sizeof key, "field.%u", fields[i].id);
        fields[i].kind = 3;
        fields[i].result = number(h, key, &fields[i].value.u);
    }
    return 0;
}
struct process { u32 pid; u64 memory; u32 gi, ci; };
int nvmlDeviceGetComputeRunningProcesses_v3(void *h, u32 *count, struct process *out) {
    u32 pid;
    u64 memory = 0;
    int r = small(h, "process", &pid);
    if (r == NOT_SUPPORTED) { *count = 0; return 0; }
    if (r) return r;
    if (!out) { *count = 1; return 7; }
    number(h, "process_bytes", &memory);
    *count = 1;
    out[0] = (struct process){pid, memory, -1, -1};
    return 0;
}
int nvmlEventSetCreate(void **out) { *out = (void *)1; return 0; }
WIDE(nvmlDeviceGetSupportedEventTypes, "event_types")
int nvmlDeviceRegisterEvents(void *h, u64 kinds, void *set) { (void)h; (void)kinds; (void)set; return 0; }
struct event { void *device; u64 kind, data; u32 gi, ci; };
int nvmlEventSetWait_v2(void *set, struct event *out, u32 timeout_ms) {
    static int told = 0;
    char v[64];
    (void)set; (void)timeout_ms;
    int r = look("xid", v, sizeof v);
    if (r == NOT_SUPPORTED || told) return r && r != NOT_SUPPORTED ? r : 10;
    if (r) return r;
    told = 1;
    *out = (struct event){(void *)1, 8, strtoull(v, 0, 0), -1, -1};
    return 0;
}
