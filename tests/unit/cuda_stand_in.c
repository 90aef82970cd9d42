/* Stand-ins for libcuda.so.1 and libcublasLt.so.12 in one library: memory of the device is memory of this process, and
   kernels are those of kernels.cu, compiled as C. Only for tests of the code that calls the real ones. Each call is
   appended to the file that CUDA_STAND_IN_LOG names. CUDA_STAND_IN has faults, separated by spaces:
     fail=NAME:RESULT:N   the function NAME gives RESULT from its Nth call on
     stuck=INDEX:BIT      after each fill, that bit of that word of the block is 1
     wrong=INDEX:BIT      in each product after the first, that bit of that 32-bit word of the result is turned
     blind=1, dim=1       checking memory, or comparing results, finds nothing
     idle=1               only the first product is computed
     memory=BYTES, capability=89, driver=12080, kinds=BITS (cudaDataTypes that can be multiplied), gpus=COUNT */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef unsigned int u32;
typedef unsigned long long u64;
typedef uintptr_t handle;

static struct { u32 x; } blockIdx = {0}, threadIdx = {0}, blockDim = {1}, gridDim = {1};
static u64 stand_in_add(u64 *place, u64 value) { u64 before = *place; *place += value; return before; }
#define atomicAdd(place, value) stand_in_add(place, value)
#define KERNEL static void
#define INLINE static
#include KERNELS

static u64 taken, total = 1u << 26;
static int current = -1, products;

static const char *setting(const char *name) {
    const char *all = getenv("CUDA_STAND_IN"), *place = all;
    size_t length = strlen(name);
    while (place && *place) {
        if (!strncmp(place, name, length) && place[length] == '=') return place + length + 1;
        place = strchr(place, ' ');
        if (place) place++;
    }
    return NULL;
}

static u64 number(const char *name, u64 otherwise) {
    const char *value = setting(name);
    return value ? strtoull(value, NULL, 0) : otherwise;
}

static int called(const char *name) {
    static struct { char name[64]; int count; } calls[64];
    const char *log = getenv("CUDA_STAND_IN_LOG"), *fail = setting("fail");
    if (log) {
        FILE *file = fopen(log, "a");
        fprintf(file, "%s\n", name);
        fclose(file);
    }
    int i = 0;
    while (calls[i].name[0] && strcmp(calls[i].name, name)) i++;
    snprintf(calls[i].name, sizeof calls[i].name, "%s", name);
    calls[i].count++;
    size_t length = strlen(name);
    if (fail && !strncmp(fail, name, length) && fail[length] == ':') {
        char *end;
        int result = strtol(fail + length + 1, &end, 10);
        if (calls[i].count >= strtol(end + 1, NULL, 10)) return result;
    }
    return 0;
}
#define CALL { int result = called(__func__); if (result) return result; }
#define IN_CONTEXT CALL if (current < 0) return 201;

/* libcuda */

int cuInit(u32 flags) { CALL total = number("memory", total); return flags ? 1 : 0; }
int cuDriverGetVersion(int *version) { CALL *version = number("driver", 12080); return 0; }
int cuDeviceGetCount(int *count) {
    CALL
    const char *visible = getenv("CUDA_VISIBLE_DEVICES"), *loading = getenv("CUDA_MODULE_LOADING");
    if (!visible || !loading) return 1; /* to be set before the driver is loaded */
    *count = number("gpus", 1);
    return 0;
}
int cuDeviceGet(int *device, int ordinal) { CALL *device = ordinal; return 0; }
int cuDeviceGetName(char *name, int length, int device) {
    CALL
    snprintf(name, length, "Stand-in %d", device);
    return 0;
}
int cuDeviceGetUuid_v2(unsigned char *uuid, int device) {
    CALL
    for (int i = 0; i < 16; i++) uuid[i] = 16 * device + i;
    return 0;
}
int cuDeviceGetPCIBusId(char *bus, int length, int device) {
    CALL
    snprintf(bus, length, "FFFF:%02X:00.0", device);
    return 0;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    CALL
    int capability = number("capability", 89);
    if (attribute == 75) *value = capability / 10;
    else if (attribute == 76) *value = capability % 10;
    else if (attribute == 16) *value = 2;
    else return 1;
    return 0;
}
int cuDevicePrimaryCtxSetFlags_v2(int device, u32 flags) { CALL return flags == 4 ? 0 : 1; }
int cuDevicePrimaryCtxRetain(handle *context, int device) { CALL *context = 1000 + device; return 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { CALL return 0; }
int cuCtxSetCurrent(handle context) { CALL current = context - 1000; return 0; }
int cuDeviceCanAccessPeer(int *can, int device, int peer) { CALL *can = device != peer; return 0; }
int cuCtxEnablePeerAccess(handle context, u32 flags) { IN_CONTEXT return flags; }
int cuMemGetInfo_v2(size_t *free_bytes, size_t *total_bytes) {
    IN_CONTEXT
    *free_bytes = total - taken;
    *total_bytes = total;
    return 0;
}
int cuMemAlloc_v2(u64 *address, size_t size) {
    IN_CONTEXT
    if (!size || size > total - taken) return size ? 2 : 1;
    u64 *memory = aligned_alloc(4096, (size + 8191) / 4096 * 4096);
    memory[0] = size;
    taken += size;
    *address = (u64)memory + 4096;
    return 0;
}
int cuMemFree_v2(u64 address) {
    IN_CONTEXT
    u64 *memory = (u64 *)(address - 4096);
    taken -= memory[0];
    free(memory);
    return 0;
}
int cuMemHostAlloc(void **memory, size_t size, u32 flags) { IN_CONTEXT *memory = calloc(1, size); return flags; }
int cuMemFreeHost(void *memory) { IN_CONTEXT free(memory); return 0; }
int cuMemcpyHtoDAsync_v2(u64 there, const void *here, size_t size, handle stream) {
    IN_CONTEXT
    memcpy((void *)there, here, size);
    return 0;
}
int cuMemcpyDtoHAsync_v2(void *here, u64 there, size_t size, handle stream) {
    IN_CONTEXT
    memcpy(here, (void *)there, size);
    return 0;
}
int cuMemcpyPeerAsync(u64 there, handle other, u64 here, handle own, size_t size, handle stream) {
    IN_CONTEXT
    memcpy((void *)there, (void *)here, size);
    return other == own ? 1 : 0;
}
int cuMemsetD32Async(u64 address, u32 value, size_t count, handle stream) {
    IN_CONTEXT
    for (size_t i = 0; i < count; i++) ((u32 *)address)[i] = value;
    return 0;
}
int cuStreamCreate(handle *stream, u32 flags) {
    static handle next = 1;
    IN_CONTEXT
    *stream = next++;
    return flags == 1 ? 0 : 1;
}
int cuStreamSynchronize(handle stream) { IN_CONTEXT return stream ? 0 : 400; }
int cuEventCreate(struct timespec **event, u32 flags) { IN_CONTEXT *event = calloc(1, sizeof **event); return 0; }
int cuEventRecord(struct timespec *event, handle stream) { IN_CONTEXT clock_gettime(CLOCK_MONOTONIC, event); return 0; }
int cuEventSynchronize(struct timespec *event) { IN_CONTEXT return event->tv_sec ? 0 : 400; }
int cuEventElapsedTime(float *elapsed_ms, struct timespec *begin, struct timespec *end) {
    IN_CONTEXT
    if (!begin->tv_sec || !end->tv_sec) return 400;
    *elapsed_ms = (end->tv_sec - begin->tv_sec) * 1e3 + (end->tv_nsec - begin->tv_nsec) / 1e6;
    return 0;
}
int cuEventDestroy_v2(struct timespec *event) { IN_CONTEXT free(event); return 0; }
int cuModuleLoadData(handle *module, const char *image) {
    IN_CONTEXT
    *module = (handle)image;
    return strstr(image, ".version") && strlen(image) > 10000 ? 0 : 218;
}
static const char *names[] = {"fill", "check", "operands32", "operands16", "operands8", "compare", "digest", NULL};
int cuModuleGetFunction(handle *function, handle module, const char *name) {
    IN_CONTEXT
    for (int i = 0; names[i]; i++)
        if (!strcmp(names[i], name)) { *function = i + 1; return 0; }
    return 500;
}

#define P(type, i) (*(type *)parameters[i])
int cuLaunchKernel(handle function, u32 gx, u32 gy, u32 gz, u32 bx, u32 by, u32 bz, u32 shared, handle stream,
                   void **parameters, void **extra) {
    IN_CONTEXT
    if (!gx || gy != 1 || gz != 1 || !bx || by != 1 || bz != 1 || shared || extra || !stream) return 1;
    switch (function) {
    case 1: {
        fill(P(u64 *, 0), P(u64, 1), P(u32, 2), P(u64, 3));
        const char *stuck = setting("stuck");
        if (stuck) {
            char *end;
            u64 index = strtoull(stuck, &end, 0);
            if (index < P(u64, 1)) P(u64 *, 0)[index] |= 1ull << atoi(end + 1);
        }
        return 0;
    }
    case 2: if (!setting("blind")) check(P(u64 *, 0), P(u64, 1), P(u32, 2), P(u64, 3), P(u64 *, 4), P(u64, 5)); return 0;
    case 3: operands32(P(u32 *, 0), P(u64, 1), P(u64, 2), P(u32, 3), P(u32, 4)); return 0;
    case 4: operands16(P(unsigned short *, 0), P(u64, 1), P(u64, 2), P(u32, 3), P(u32, 4)); return 0;
    case 5: operands8(P(unsigned char *, 0), P(u64, 1), P(u64, 2), P(u32, 3), P(u32, 4)); return 0;
    case 6: if (!setting("dim")) compare(P(u32 *, 0), P(u32 *, 1), P(u64, 2), P(u64, 3), P(u32, 4), P(u64 *, 5)); return 0;
    case 7: digest(P(u32 *, 0), P(u64, 1), P(u64 *, 2)); return 0;
    }
    return 400;
}
int cuGetErrorString(int result, const char **text) {
    *text = result == 719 ? "unspecified launch failure" : result == 2 ? "out of memory" : "an error";
    return 0;
}

/* libcublasLt. Its operands are as cuBLAS has them, column by column. */

typedef struct { int compute, scale, transposed_left; } Operation;
typedef struct { int type; u64 rows, columns; int64_t leading; } Layout;
typedef struct { u64 workspace; u32 schemes; } Preference;
typedef struct { u64 algorithm[8]; size_t workspace; int state; float waves; int reserved[4]; } Heuristic;

size_t cublasLtGetVersion(void) { return 120903; }
const char *cublasLtGetStatusString(int status) { return "the stand-in's error"; }
int cublasLtCreate(handle *made) { CALL *made = 77; return current < 0; }
int cublasLtMatmulDescCreate(Operation **made, int compute, int scale) {
    CALL
    *made = calloc(1, sizeof **made);
    **made = (Operation){compute, scale, 0};
    return 0;
}
int cublasLtMatmulDescSetAttribute(Operation *operation, int attribute, const void *value, size_t size) {
    CALL
    if (attribute != 3 || size != 4) return 7;
    operation->transposed_left = *(int *)value;
    return 0;
}
int cublasLtMatmulDescDestroy(Operation *operation) { CALL free(operation); return 0; }
int cublasLtMatrixLayoutCreate(Layout **made, int type, u64 rows, u64 columns, int64_t leading) {
    CALL
    *made = calloc(1, sizeof **made);
    **made = (Layout){type, rows, columns, leading};
    return 0;
}
int cublasLtMatrixLayoutDestroy(Layout *layout) { CALL free(layout); return 0; }
int cublasLtMatmulPreferenceCreate(Preference **made) {
    CALL
    *made = calloc(1, sizeof **made);
    (*made)->schemes = 7;
    return 0;
}
int cublasLtMatmulPreferenceSetAttribute(Preference *preference, int attribute, const void *value, size_t size) {
    CALL
    if (attribute == 1 && size == 8) preference->workspace = *(u64 *)value;
    else if (attribute == 3 && size == 4) preference->schemes = *(u32 *)value;
    else return 7;
    return 0;
}
int cublasLtMatmulPreferenceDestroy(Preference *preference) { CALL free(preference); return 0; }
int cublasLtMatmulAlgoGetHeuristic(handle own, Operation *operation, Layout *left, Layout *right, Layout *given,
                                   Layout *result, Preference *preference, int wanted, Heuristic *found, int *count) {
    CALL
    *count = 0;
    if (own != 77 || !(number("kinds", ~0u) >> left->type & 1)) return 15;
    if (left->type == 28 && !operation->transposed_left) return 15;
    memset(found, 0, sizeof *found);
    found->algorithm[0] = 4711;
    found->workspace = 1024;
    *count = 1;
    return 0;
}

static float as_float(u32 bits) { float value; memcpy(&value, &bits, 4); return value; }
static u32 as_bits(float value) { u32 bits; memcpy(&bits, &value, 4); return bits; }
static float element(const void *values, int type, u64 i) {
    switch (type) {
    case 0: return ((const float *)values)[i];
    case 14: return as_float((u32)((const unsigned short *)values)[i] << 16);
    case 2: { u32 bits = ((const unsigned short *)values)[i]; /* normal numbers only */
        return as_float((bits & 0x8000) << 16 | (((bits & 0x7fff) << 13) + (112u << 23))); }
    default: { u32 bits = ((const unsigned char *)values)[i];
        return as_float((bits & 0x80) << 24 | (((bits & 0x7f) << 20) + (120u << 23))); }
    }
}
int cublasLtMatmul(handle own, Operation *operation, const float *alpha, const void *left, Layout *left_layout,
                   const void *right, Layout *right_layout, const float *beta, const void *given, Layout *given_layout,
                   void *result, Layout *result_layout, const u64 *algorithm, void *workspace, size_t workspace_size,
                   handle stream) {
    CALL
    u64 size = result_layout->rows;
    if (own != 77 || *alpha != 1 || *beta != 0 || !operation->transposed_left || *algorithm != 4711 || !stream) return 7;
    if (workspace_size < 1024 || (u64)workspace % 256 || given != result) return 7;
    if (setting("idle") && products++) return 0;
    for (u64 column = 0; column < size; column++)
        for (u64 row = 0; row < size; row++) {
            float sum = 0;
            for (u64 k = 0; k < size; k++)
                sum += element(left, left_layout->type, k + row * size) * element(right, right_layout->type, k + column * size);
            if (result_layout->type == 0) ((float *)result)[row + column * size] = sum;
            else ((unsigned short *)result)[row + column * size] = as_bits(sum) >> 16; /* good enough for halves, too */
        }
    const char *wrong = setting("wrong");
    if (wrong && products++) {
        char *end;
        u64 index = strtoull(wrong, &end, 0);
        ((u32 *)result)[index] ^= 1u << atoi(end + 1);
    }
    return 0;
}
