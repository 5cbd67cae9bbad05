//! What a process's last words tell of why it failed: the words of frameworks and C libraries. Pure.

/// What frameworks and C libraries print when memory runs out, of the device or of the host.
const SPEAKS_OF_MEMORY: [&str; 12] = [
    "CUDA out of memory",
    "HIP out of memory",
    "OutOfMemoryError",
    "CUDA_ERROR_OUT_OF_MEMORY",
    "cudaErrorMemoryAllocation",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "RESOURCE_EXHAUSTED: Out of memory",
    "cudaMalloc failed: out of memory",
    "Cannot allocate memory",
    "MemoryError",
    "std::bad_alloc",
];

/// Whether the text says that memory ran out, of the device or of the host.
pub(crate) fn speaks_of_memory(text: &[u8]) -> bool {
    SPEAKS_OF_MEMORY.iter().any(|words| text.windows(words.len()).any(|window| window == words.as_bytes()))
}

/// Whether a worker's own words tell of its device: the names of CUDA's, HIP's and their libraries' errors.
pub(crate) fn speaks_of_device(error: &str) -> bool {
    const WORDS: [&str; 7] =
        ["CUDA error", "CUDA_ERROR_", "CUDNN_STATUS_", "CUBLAS_STATUS_", "HIP error", "NCCL error", "cudaError"];
    WORDS.iter().any(|words| error.contains(words))
}
