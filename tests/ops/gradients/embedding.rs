//! Gradient of the embedding.

use mapl::backend::Write::{Add, Overwrite};
use mapl::backend::contract::*;

use super::difference::{ORACLE, check};
use common::{normal, runs};

pub fn embedding() {
    // Id 3 occurs three times, so its gradient is a sum. Ids 0 and 5 never occur: only `Overwrite`
    // clears their rows.
    let (d, ids) = (EmbeddingDims { tokens: 6, vocab: 6, hidden: 3 }, [3, 1, 3, 4, 3, 2]);
    for write in [Overwrite, Add] {
        check(
            "embedding",
            &[normal("table", 18, 1.0)],
            &[write],
            |i| runs::embedding_fwd(&ORACLE, d, &ids, &i[0])[0].1.clone(),
            |_, dx, start| vec![runs::embedding_bwd(&ORACLE, d, &ids, dx, &start[0], write)[0].1.clone()],
        );
    }
}
