//! Memory that was freed, given back to the kernel.

/// Has the allocator give back at once what it keeps of freed memory for the next second: a good idea before something large.
///
/// It does nothing for memory of another allocator.
pub fn give_back() {
    // SAFETY: mimalloc's documentation allows a call at any time from any thread; it frees nothing that is in use.
    unsafe { libmimalloc_sys::mi_collect(true) }
}
