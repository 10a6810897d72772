//! Files of the ladders, embedded in the program so that an installed binary runs them.

pub(super) const PRODUCT: &[(&str, &str)] = &[
    ("product_1_naive.cu", include_str!("../../../benches/ladder/product/product_1_naive.cu")),
    ("product_1_naive.toml", include_str!("../../../benches/ladder/product/product_1_naive.toml")),
    ("product_2_coalesced.cu", include_str!("../../../benches/ladder/product/product_2_coalesced.cu")),
    ("product_2_coalesced.toml", include_str!("../../../benches/ladder/product/product_2_coalesced.toml")),
    ("product_3_shared_tiles.cu", include_str!("../../../benches/ladder/product/product_3_shared_tiles.cu")),
    ("product_3_shared_tiles.toml", include_str!("../../../benches/ladder/product/product_3_shared_tiles.toml")),
    ("product_4_register_tiles.cu", include_str!("../../../benches/ladder/product/product_4_register_tiles.cu")),
    ("product_4_register_tiles.toml", include_str!("../../../benches/ladder/product/product_4_register_tiles.toml")),
    ("product_5_swizzled_vectors.cu", include_str!("../../../benches/ladder/product/product_5_swizzled_vectors.cu")),
    (
        "product_5_swizzled_vectors.toml",
        include_str!("../../../benches/ladder/product/product_5_swizzled_vectors.toml"),
    ),
    ("product_6_tensor_cores.cu", include_str!("../../../benches/ladder/product/product_6_tensor_cores.cu")),
    ("product_6_tensor_cores.toml", include_str!("../../../benches/ladder/product/product_6_tensor_cores.toml")),
    ("product_7_pipeline.cu", include_str!("../../../benches/ladder/product/product_7_pipeline.cu")),
    ("product_7_pipeline.toml", include_str!("../../../benches/ladder/product/product_7_pipeline.toml")),
];

pub(super) const HEAD: &[(&str, &str)] = &[
    ("head_1_stored_logits.cu", include_str!("../../../benches/ladder/head/head_1_stored_logits.cu")),
    ("head_1_stored_logits.toml", include_str!("../../../benches/ladder/head/head_1_stored_logits.toml")),
    ("head_2_online.cu", include_str!("../../../benches/ladder/head/head_2_online.cu")),
    ("head_2_online.toml", include_str!("../../../benches/ladder/head/head_2_online.toml")),
    ("head_3_fused.cu", include_str!("../../../benches/ladder/head/head_3_fused.cu")),
    ("head_3_fused.toml", include_str!("../../../benches/ladder/head/head_3_fused.toml")),
    ("head_4_tensor_cores.cu", include_str!("../../../benches/ladder/head/head_4_tensor_cores.cu")),
    ("head_4_tensor_cores.toml", include_str!("../../../benches/ladder/head/head_4_tensor_cores.toml")),
    ("head_5_split.cu", include_str!("../../../benches/ladder/head/head_5_split.cu")),
    ("head_5_split.toml", include_str!("../../../benches/ladder/head/head_5_split.toml")),
    ("head_6_pipeline.cu", include_str!("../../../benches/ladder/head/head_6_pipeline.cu")),
    ("head_6_pipeline.toml", include_str!("../../../benches/ladder/head/head_6_pipeline.toml")),
    ("head_tiles.cuh", include_str!("../../../benches/ladder/head/head_tiles.cuh")),
];
