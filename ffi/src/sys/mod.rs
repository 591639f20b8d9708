//! The declarations of rdma-core 44, as bindgen makes them; see `cargo xtask bindings`.
//!
//! Only version 44's are right with every library since. Nothing outside of this crate sees them.

/// libibverbs: types, constants, and the table of functions that are looked up at run time.
#[allow(clippy::all, clippy::undocumented_unsafe_blocks, clippy::multiple_unsafe_ops_per_block)]
#[allow(clippy::missing_safety_doc, clippy::unwrap_used)]
#[allow(non_camel_case_types, non_upper_case_globals, non_snake_case, dead_code, unreachable_pub)]
#[allow(missing_docs, missing_debug_implementations, unused_qualifications)]
#[rustfmt::skip]
pub(crate) mod verbs {
    include!("verbs_v44.rs");
}

/// librdmacm: which device serves an address.
#[allow(clippy::all, clippy::undocumented_unsafe_blocks, clippy::multiple_unsafe_ops_per_block)]
#[allow(clippy::missing_safety_doc, clippy::unwrap_used)]
#[allow(non_camel_case_types, non_upper_case_globals, non_snake_case, dead_code, unreachable_pub)]
#[allow(missing_docs, missing_debug_implementations, unused_qualifications)]
#[rustfmt::skip]
pub(crate) mod rdmacm {
    include!("rdmacm_v44.rs");
}

#[cfg(test)]
mod layout;
