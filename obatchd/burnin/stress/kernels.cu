/* What the stress process runs on a GPU beside the matrix products of cuBLASLt. Compiled to kernels.ptx by
   scripts/kernels.py, which the driver turns into code of the card. A test compiles it as C, with its own macros.
   The patterns are those of obatchd.burnin.stress.device.Pattern. */

typedef unsigned int u32;
typedef unsigned long long u64;

#ifndef KERNEL
#define KERNEL extern "C" __global__ void
#define INLINE __device__ static
#endif
#define EACH(i, count) \
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < (count); i += (u64)gridDim.x * blockDim.x)
#define GOLDEN 0x9E3779B97F4A7C15ULL

INLINE u64 mixed(u64 value) {
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9ULL;
    value = (value ^ (value >> 27)) * 0x94D049BB133111EBULL;
    return value ^ (value >> 31);
}

/* index: of the word, its address divided by 8. kinds in the order of obatchd.burnin.stress.cuda.KINDS. */
INLINE u64 word_at(u32 kind, u64 index, u64 number) {
    switch (kind) {
    case 0: return 1ULL << ((index + number) % 64);
    case 1: return ~(1ULL << ((index + number) % 64));
    case 2: return index * 8;
    case 3: return ~(index * 8);
    default: return mixed(index * GOLDEN + number);
    }
}

KERNEL fill(u64 *words, u64 count, u32 kind, u64 number) {
    u64 first = (u64)words / 8;
    EACH(i, count) words[i] = word_at(kind, first + i, number);
}

/* report: the count of wrong words, then of some of them the index and what was found. */
KERNEL check(const u64 *words, u64 count, u32 kind, u64 number, u64 *report, u64 most) {
    u64 first = (u64)words / 8;
    EACH(i, count) {
        u64 found = ((const volatile u64 *)words)[i];
        if (found != word_at(kind, first + i, number)) {
            u64 place = atomicAdd(report, 1ULL);
            if (place < most) {
                report[1 + 2 * place] = i;
                report[2 + 2 * place] = found;
            }
        }
    }
}

/* Operands: sign and significand at random, the magnitude from 1/2 up to 1. */
INLINE u64 bits_at(u64 i, u64 seed) { return mixed(i * GOLDEN + seed); }

KERNEL operands32(u32 *values, u64 count, u64 seed, u32 one_half, u32 random_bits) {
    EACH(i, count) values[i] = one_half | ((u32)bits_at(i, seed) & random_bits);
}

KERNEL operands16(unsigned short *values, u64 count, u64 seed, u32 one_half, u32 random_bits) {
    EACH(i, count) values[i] = (unsigned short)(one_half | ((u32)bits_at(i, seed) & random_bits));
}

KERNEL operands8(unsigned char *values, u64 count, u64 seed, u32 one_half, u32 random_bits) {
    EACH(i, count) values[i] = (unsigned char)(one_half | ((u32)bits_at(i, seed) & random_bits));
}

/* Compares two results as words of 32 bits. report: for each tile the count of wrong words, the index of one of them,
   and what was found there. */
KERNEL compare(const u32 *first, const u32 *result, u64 rows, u64 row_words, u32 tiles, u64 *report) {
    EACH(i, rows * row_words) {
        u32 found = ((const volatile u32 *)result)[i];
        if (found != ((const volatile u32 *)first)[i]) {
            u64 tile = i / row_words * tiles / rows * tiles + i % row_words * tiles / row_words;
            if (atomicAdd(&report[3 * tile], 1ULL) == 0) {
                report[3 * tile + 1] = i;
                report[3 * tile + 2] = found;
            }
        }
    }
}

KERNEL digest(const u32 *words, u64 count, u64 *sum) {
    u64 own = 0;
    EACH(i, count) own += mixed(i * GOLDEN ^ words[i]);
    atomicAdd(sum, own);
}
