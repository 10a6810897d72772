//! Prefix trees and packed batches. A walk along its segments gives back every sequence, no token
//! is stored twice, and all index tables equal a direct computation.
//!
//! Random groups use three token ids, so that prompts often share a prefix, are equal, or extend
//! one another. Responses are short, so that one-token responses are frequent.

mod groups;

use groups::{bakery, group, random_batches};
use mapl::backend::contract::{GroupEnd, TERMS};
use mapl::data::group::Kind;
use mapl::data::pack::{
    Batch, ComparisonOptions, LogpScope, PackOptions, RunTable, Scoring, SequenceRef, pack_into, reward_position,
};
use mapl::data::tokenized::{Sequence, SequenceComparison, SequenceTerm, TokenizedGroup};
use mapl::data::tree::{PrefixTree, TokenCounts, TreeOptions, token_counts};
use std::collections::{BTreeMap, BTreeSet};

const LOGP: Scoring = Scoring::LogProb { scope: LogpScope::Response };
const PATH_LOGP: Scoring = Scoring::LogProb { scope: LogpScope::PromptAndResponse };
const LOSS: ComparisonOptions = ComparisonOptions { scale: [0.1, 0.2, 0.3], margin_add: 0.5 };

fn options(scoring: Scoring, share_prefixes: bool) -> PackOptions {
    PackOptions { share_prefixes, scoring, vocab: 8, pad: None, position_runs: false }
}

fn pack(groups: &[TokenizedGroup], scoring: Scoring, share: bool) -> Batch {
    let mut batch = Batch::default();
    pack_into(&mut batch, &groups.iter().collect::<Vec<_>>(), &options(scoring, share), &LOSS).unwrap();
    batch
}

/// Index of a row's segment.
fn segment_of(batch: &Batch, row: usize) -> usize {
    (0..batch.segments()).find(|&s| row < batch.tree.starts[s + 1] as usize).unwrap()
}

/// Rows visible to the query at `row`, in path order, computed only from the tree tables.
fn visible(batch: &Batch, row: usize) -> Vec<usize> {
    let (tree, s) = (&batch.tree, segment_of(batch, row));
    let rows = |s: usize| tree.starts[s] as usize..tree.starts[s + 1] as usize;
    let ancestors = &tree.ancestors[tree.ancestor_offsets[s] as usize..tree.ancestor_offsets[s + 1] as usize];
    ancestors.iter().flat_map(|&a| rows(a as usize)).chain(rows(s).start..row + 1).collect()
}

fn ids_at(batch: &Batch, rows: &[usize]) -> Vec<u32> {
    rows.iter().map(|&row| batch.ids[row] as u32).collect()
}

/// Last row of a sequence's path.
fn last_row(batch: &Batch, seq: usize, scoring: Scoring) -> usize {
    match scoring {
        Scoring::Reward => batch.last_rows[seq] as usize,
        Scoring::LogProb { .. } => batch.source[batch.seq_offsets[seq + 1] as usize - 1] as usize,
    }
}

/// Input tokens of a sequence and the number of its prompt tokens.
fn path_ids(groups: &[TokenizedGroup], reference: &SequenceRef, scoring: Scoring) -> (Vec<u32>, usize) {
    let group = &groups[reference.group];
    let find = |s: &&Sequence| (s.prompt, s.response) == (reference.prompt, reference.response);
    let response = &group.sequences.iter().find(find).unwrap().response_ids;
    assert_eq!(reference.response_tokens, response.len());
    let prompt = &group.prompt_ids[reference.prompt];
    let mut ids = [prompt.as_slice(), response].concat();
    if scoring != Scoring::Reward {
        ids.pop();
    }
    (ids, prompt.len())
}

#[test]
fn every_path_is_prompt_then_response_and_positions_count_along_it() {
    for groups in random_batches() {
        for (scoring, share) in [(LOGP, true), (LOGP, false), (PATH_LOGP, true), (Scoring::Reward, true)] {
            let batch = pack(&groups, scoring, share);
            assert_eq!(batch.groups, groups.len());
            assert_eq!(batch.seqs(), groups.iter().map(|g| g.sequences.len()).sum::<usize>());
            for (s, reference) in batch.sequences.iter().enumerate() {
                let last = last_row(&batch, s, scoring);
                let rows = visible(&batch, last);
                assert_eq!(ids_at(&batch, &rows), path_ids(&groups, reference, scoring).0);
                assert!(rows.iter().enumerate().all(|(place, &row)| batch.positions[row] as usize == place));
                assert_eq!(last + 1, batch.tree.starts[segment_of(&batch, last) + 1] as usize);
            }
            let longest = groups.iter().map(TokenizedGroup::longest).max().unwrap();
            assert_eq!(batch.longest_path, longest - usize::from(scoring != Scoring::Reward));
        }
    }
}

#[test]
fn no_token_is_stored_twice() {
    for groups in random_batches() {
        let mut prefixes = BTreeSet::new();
        for (g, group) in groups.iter().enumerate() {
            for sequence in &group.sequences {
                let prompt = &group.prompt_ids[sequence.prompt];
                prefixes.extend((1..=prompt.len()).map(|end| (g, &prompt[..end])));
            }
        }
        let first_tokens = prefixes.iter().filter(|(_, prefix)| prefix.len() == 1).count();
        let responses: usize = groups.iter().map(TokenizedGroup::response_tokens).sum();
        let prompts: usize = groups.iter().flat_map(|g| g.sequences.iter().map(|s| g.prompt_ids[s.prompt].len())).sum();

        let whole = pack(&groups, Scoring::Reward, true);
        assert_eq!(whole.tokens(), prefixes.len() + responses);
        assert_eq!(whole.tokens_unshared, prompts + responses);
        let scored = pack(&groups, LOGP, true);
        assert_eq!(scored.tokens(), prefixes.len() + responses - scored.seqs());
        assert_eq!(scored.tokens_unshared, prompts + responses - scored.seqs());
        for batch in [whole, scored] {
            assert_eq!(batch.trees(), first_tokens);
            let distinct: BTreeSet<_> = batch.last_rows.iter().collect();
            assert_eq!(distinct.len(), batch.last_rows.len());
        }
    }
}

#[test]
fn segments_are_ordered_and_trees_are_contiguous() {
    for groups in random_batches() {
        for (scoring, share) in [(LOGP, true), (Scoring::Reward, true), (LOGP, false)] {
            let batch = pack(&groups, scoring, share);
            let tree = &batch.tree;
            assert!(tree.starts.is_sorted_by(|a, b| a < b), "empty segment");
            assert_eq!(*tree.starts.last().unwrap() as usize, batch.tokens());
            assert!(tree.trees.is_sorted_by(|a, b| a < b), "empty tree");
            assert_eq!(*tree.trees.last().unwrap() as usize, batch.segments());
            assert_eq!((tree.starts[0], tree.trees[0], tree.ancestor_offsets[0]), (0, 0, 0));
            for bounds in tree.trees.windows(2) {
                for s in bounds[0]..bounds[1] {
                    let list =
                        tree.ancestor_offsets[s as usize] as usize..tree.ancestor_offsets[s as usize + 1] as usize;
                    let ancestors = &tree.ancestors[list];
                    // Depth-first order: the root is the first segment, and ancestor lists ascend
                    // from the root to the parent.
                    assert_eq!(ancestors.first().copied().unwrap_or(s), bounds[0]);
                    assert!(ancestors.is_sorted_by(|a, b| a < b) && ancestors.last().is_none_or(|&a| a < s));
                }
            }
            let pairs: usize = (0..batch.tokens()).map(|row| visible(&batch, row).len()).sum();
            assert_eq!(batch.pairs, pairs as u64);
        }
    }
}

#[test]
fn responses_come_before_branches_in_order_of_the_smallest_prompt_index() {
    // [1 2] is a complete prompt and has two continuations; prompts 1 and 3 are equal.
    let prompts = vec![vec![1, 2, 4, 4], vec![1, 2], vec![1, 2, 3], vec![1, 2]];
    let pairs = [(0, vec![5]), (0, vec![6]), (1, vec![5, 5]), (2, vec![7, 7]), (3, vec![6])];
    let group = group(prompts, &pairs, Vec::new());
    let mut tree = PrefixTree::default();
    tree.build(&group, TreeOptions { share: true, omit_last: false });
    let seen: Vec<_> =
        tree.segments().iter().map(|s| (s.prompt, s.prompt_range.clone(), s.sequence, s.response_len)).collect();
    let expected = [
        (0, 0..2, None, 0),
        (1, 2..2, Some(2), 2),
        (3, 2..2, Some(4), 1),
        (0, 2..4, None, 0),
        (0, 4..4, Some(0), 1),
        (0, 4..4, Some(1), 1),
        // With a single continuation, prompt and response are one segment.
        (2, 2..3, Some(3), 2),
    ];
    assert_eq!(seen, expected);
    assert_eq!((tree.ancestors(4), tree.ancestors(6), tree.ancestors(0)), (&[0, 3][..], &[0][..], &[][..]));
    // Without their last tokens, one-token responses leave no segment and end where their prompt
    // ends.
    tree.build(&group, TreeOptions { share: true, omit_last: true });
    assert_eq!(tree.segments().len(), 4);
    assert_eq!((0..5).map(|s| tree.path_end(s).unwrap()).collect::<Vec<_>>(), [2, 2, 1, 3, 0]);
}

#[test]
fn head_rows_predict_every_scored_token_once() {
    for groups in random_batches() {
        for scoring in [LOGP, PATH_LOGP] {
            for share in [true, false] {
                let batch = pack(&groups, scoring, share);
                assert!(batch.last_rows.is_empty());
                assert_eq!(*batch.seq_offsets.last().unwrap() as usize, batch.head_rows());
                for (s, reference) in batch.sequences.iter().enumerate() {
                    let (whole, prompt_len) = path_ids(&groups, reference, Scoring::Reward);
                    let first = if scoring == LOGP { prompt_len } else { 1 };
                    let rows = batch.seq_offsets[s] as usize..batch.seq_offsets[s + 1] as usize;
                    assert_eq!(rows.len(), whole.len() - first);
                    for (row, place) in rows.zip(first..) {
                        assert_eq!(batch.target[row] as u32, whole[place]);
                        // The source row sees exactly the tokens before its target.
                        assert_eq!(ids_at(&batch, &visible(&batch, batch.source[row] as usize)), whole[..place]);
                    }
                }
            }
        }
        let reward = pack(&groups, Scoring::Reward, true);
        assert_eq!((reward.head_rows(), reward.last_rows.len()), (0, reward.seqs()));
        assert!(reward.seq_offsets.len() == reward.seqs() + 1 && reward.seq_offsets.iter().all(|&o| o == 0));
        assert!(reward.group_ends.iter().all(|end| end.row == 0));
    }
}

#[test]
fn group_ends_match_their_rows_and_sequences() {
    for groups in random_batches() {
        for scoring in [LOGP, PATH_LOGP, Scoring::Reward] {
            let batch = pack(&groups, scoring, true);
            let mut seq = 0;
            let ends = groups.iter().map(|group| {
                seq += group.sequences.len();
                GroupEnd { row: batch.seq_offsets[seq] as usize, seq }
            });
            assert_eq!(batch.group_ends, ends.collect::<Vec<_>>());
            // A hidden row is the source only of rows of one group, and comparisons stay within a
            // group.
            let group_of = |row: i32| batch.group_ends.iter().position(|end| (row as usize) < end.row);
            for run in batch.head_runs.offsets.windows(2) {
                let rows = &batch.head_runs.order[run[0] as usize..run[1] as usize];
                assert!(rows.iter().all(|&row| group_of(row) == group_of(rows[0])));
            }
            for terms in batch.comparisons.term_sequence.chunks(TERMS) {
                let mut groups = terms.iter().filter(|&&s| s >= 0).map(|&s| batch.sequences[s as usize].group);
                let first = groups.next();
                assert!(groups.all(|group| Some(group) == first));
            }
        }
    }
}

#[test]
fn run_tables_list_rows_in_ascending_order() {
    let grouped = |keys: &[i32]| {
        let mut map = BTreeMap::<i32, Vec<i32>>::new();
        keys.iter().enumerate().for_each(|(item, &key)| map.entry(key).or_default().push(item as i32));
        map
    };
    let check = |runs: &RunTable, keys: &[i32]| {
        let map = grouped(keys);
        assert_eq!(runs.keys, map.keys().copied().collect::<Vec<_>>());
        assert_eq!(runs.order, map.values().flatten().copied().collect::<Vec<_>>());
        let lengths: Vec<_> = runs.offsets.windows(2).map(|w| (w[1] - w[0]) as usize).collect();
        assert_eq!(lengths, map.values().map(Vec::len).collect::<Vec<_>>());
        assert_eq!(runs.offsets[0], 0);
    };
    for groups in random_batches() {
        let batch = pack(&groups, PATH_LOGP, true);
        check(&batch.id_runs, &batch.ids);
        check(&batch.head_runs, &batch.source);
    }
}

#[test]
fn the_comparison_table_holds_every_term() {
    for groups in random_batches() {
        let batch = pack(&groups, LOGP, true);
        let table = &batch.comparisons;
        let mut counts = [0; 3];
        let mut uses = vec![Vec::new(); batch.seqs()];
        let (mut c, mut first_seq) = (0, 0);
        for (g, group) in groups.iter().enumerate() {
            for (index, comparison) in group.comparisons.iter().enumerate() {
                let kind = comparison.kind.index();
                assert_eq!((table.refs[c].group, table.refs[c].index, table.kind[c]), (g, index, kind as i32));
                assert_eq!((table.scale[c], table.weight[c]), (LOSS.scale[kind], comparison.weight));
                assert_eq!(table.margin[c], comparison.margin + 0.5);
                let clip = comparison.detached_clip.unwrap_or((f64::NEG_INFINITY, f64::INFINITY));
                assert_eq!((table.detached_clip[2 * c], table.detached_clip[2 * c + 1]), clip);
                for slot in 0..4 {
                    let entry = (table.term_sequence[4 * c + slot], table.term_sign[4 * c + slot]);
                    let Some(term) = comparison.terms.get(slot) else {
                        assert_eq!(entry, (-1, 0));
                        continue;
                    };
                    let sign = i32::from(term.sign) * (1 + i32::from(term.detached));
                    assert_eq!(entry, ((first_seq + term.sequence) as i32, sign));
                    uses[first_seq + term.sequence].push((4 * c + slot) as i32);
                }
                counts[kind] += 1;
                c += 1;
            }
            first_seq += group.sequences.len();
        }
        assert_eq!((batch.comparison_count(), table.counts), (c, counts));
        assert_eq!(table.uses, uses.concat());
        assert_eq!(table.use_offsets.len(), batch.seqs() + 1);
        for (s, list) in uses.iter().enumerate() {
            assert_eq!((table.use_offsets[s + 1] - table.use_offsets[s]) as usize, list.len());
        }
    }
}

#[test]
fn sharing_changes_only_rows() {
    for groups in random_batches() {
        for scoring in [LOGP, PATH_LOGP, Scoring::Reward] {
            let (shared, plain) = (pack(&groups, scoring, true), pack(&groups, scoring, false));
            assert_eq!((plain.trees(), plain.segments(), plain.tree.ancestors.len()), (plain.seqs(), plain.seqs(), 0));
            assert_eq!((plain.tokens(), shared.tokens_unshared), (plain.tokens_unshared, plain.tokens_unshared));
            assert_eq!((&shared.target, &shared.seq_offsets), (&plain.target, &plain.seq_offsets));
            assert_eq!((&shared.sequences, &shared.comparisons), (&plain.sequences, &plain.comparisons));
            assert_eq!(shared.longest_path, plain.longest_path);
        }
        // A single sequence has nothing to share.
        let mut single = groups[0].clone();
        single.sequences.truncate(1);
        single.comparisons.clear();
        let single = [single];
        assert_eq!(pack(&single, LOGP, true).tree, pack(&single, LOGP, false).tree);
    }
}

#[test]
fn a_reused_batch_equals_a_new_one_and_keeps_its_memory() {
    let batches: Vec<_> = random_batches().take(40).collect();
    let mut reused = Batch::default();
    for (scoring, groups) in [PATH_LOGP, Scoring::Reward, LOGP].into_iter().cycle().zip(&batches) {
        pack_into(&mut reused, &groups.iter().collect::<Vec<_>>(), &options(scoring, true), &LOSS).unwrap();
        let fresh = pack(groups, scoring, true);
        assert_eq!((&reused.ids, &reused.positions, &reused.id_runs), (&fresh.ids, &fresh.positions, &fresh.id_runs));
        assert_eq!((&reused.tree, reused.pairs, reused.longest_path), (&fresh.tree, fresh.pairs, fresh.longest_path));
        assert_eq!((&reused.source, &reused.target), (&fresh.source, &fresh.target));
        assert_eq!((&reused.head_runs, &reused.seq_offsets), (&fresh.head_runs, &fresh.seq_offsets));
        assert_eq!((&reused.last_rows, &reused.sequences), (&fresh.last_rows, &fresh.sequences));
        assert_eq!((&reused.comparisons, reused.groups), (&fresh.comparisons, fresh.groups));
        assert_eq!(reused.group_ends, fresh.group_ends);
        assert_eq!(reused.tokens_unshared, fresh.tokens_unshared);
        let before = (reused.ids.as_ptr(), reused.source.as_ptr(), reused.comparisons.uses.as_ptr());
        pack_into(&mut reused, &groups.iter().collect::<Vec<_>>(), &options(scoring, true), &LOSS).unwrap();
        assert_eq!(before, (reused.ids.as_ptr(), reused.source.as_ptr(), reused.comparisons.uses.as_ptr()));
    }
    reused.clear();
    let cleared = &reused.comparisons;
    assert!(cleared.uses.is_empty() && cleared.term_sequence.is_empty() && reused.id_runs.order.is_empty());
    pack_into(&mut reused, &[], &options(LOGP, true), &LOSS).unwrap();
    assert_eq!((reused.tokens(), reused.seqs(), reused.segments(), reused.trees()), (0, 0, 0, 0));
    assert_eq!((reused.tree.starts.as_slice(), reused.comparisons.use_offsets.as_slice()), (&[0][..], &[0][..]));
    assert_eq!((reused.id_runs.offsets.as_slice(), reused.seq_offsets.as_slice()), (&[0][..], &[0][..]));
}

#[test]
fn invalid_groups_are_refused_and_leave_an_empty_batch() {
    let good = group(vec![vec![1]], &[(0, vec![2]), (0, vec![3])], Vec::new());
    let comparison = |sequence, sign, terms, detached_clip| SequenceComparison {
        kind: Kind::Base,
        terms: vec![SequenceTerm { sequence, sign, detached: false }; terms],
        margin: 0.0,
        weight: 1.0,
        detached_clip,
    };
    let with = |c| TokenizedGroup { comparisons: vec![c], ..good.clone() };
    let refused = |bad: &TokenizedGroup, scoring| {
        let mut batch = Batch::default();
        let error = pack_into(&mut batch, &[&good, bad], &options(scoring, true), &LOSS).unwrap_err();
        assert_eq!((batch.groups, batch.tokens(), batch.seqs(), batch.segments()), (0, 0, 0, 0));
        (error.exit_code(), error.to_string())
    };
    let bad_data = |bad: &TokenizedGroup, scoring, part: &str| {
        let (code, message) = refused(bad, scoring);
        assert!(code == 3 && message.contains("row-7") && message.contains(part), "{code}: {message}");
    };
    let no_prompt = group(vec![vec![]], &[(0, vec![2, 3])], Vec::new());
    bad_data(&no_prompt, LOGP, "prompt 0 has no tokens");
    bad_data(&no_prompt, PATH_LOGP, "prompt 0 has no tokens");
    bad_data(&group(vec![vec![1]], &[(0, vec![])], Vec::new()), Scoring::Reward, "no response tokens");
    bad_data(&group(vec![vec![8]], &[(0, vec![1])], Vec::new()), LOGP, "token id 8");
    bad_data(&group(vec![vec![1]], &[(0, vec![9])], Vec::new()), LOGP, "token id 9");
    // A reward does not need a prediction of the first token.
    assert_eq!(pack(&[no_prompt], Scoring::Reward, true).last_rows, [1]);

    let defect = |bad: &TokenizedGroup, part: &str| {
        let (code, message) = refused(bad, LOGP);
        assert!(code == 1 && message.contains(part), "{code}: {message}");
    };
    defect(&group(vec![vec![1]], &[(1, vec![1])], Vec::new()), "prompt: expected below 1, got 1");
    defect(&with(comparison(2, 1, 2, None)), "term.sequence: expected below 2, got 2");
    defect(&with(comparison(0, 3, 2, None)), "term.sign");
    defect(&with(comparison(0, 1, 5, None)), "at most 4");
    defect(&with(comparison(0, 1, 2, Some((1.0, 0.0)))), "detached_clip");
    defect(&with(comparison(0, 1, 2, Some((0.0, f64::NAN)))), "detached_clip");
}

#[test]
fn the_documented_example_has_the_documented_counts() {
    let group = bakery();
    assert_eq!(group.prompt_ids.iter().map(Vec::len).collect::<Vec<_>>(), [14, 38, 38, 37, 38]);
    assert_eq!((group.sequences[0].response_ids.len(), group.sequences[1].response_ids.len()), (42, 19));
    let expected = TokenCounts { per_term: 812, per_sequence: 498, per_prompt: 409, tree: 337 };
    assert_eq!(token_counts(&group), expected);
    // Prompts with equal ids count as one prompt even under two indices.
    let twice = self::group(vec![vec![1, 2], vec![1, 2]], &[(0, vec![3]), (1, vec![4])], Vec::new());
    assert_eq!(token_counts(&twice), TokenCounts { per_term: 0, per_sequence: 6, per_prompt: 4, tree: 4 });

    let options = |scoring| PackOptions { share_prefixes: true, scoring, vocab: 100, pad: None, position_runs: false };
    let mut batch = Batch::default();
    pack_into(&mut batch, &[&group], &options(Scoring::Reward), &LOSS).unwrap();
    assert_eq!((batch.tokens(), batch.tokens_unshared), (337, 498));
    // Lengths of segments: prompt x has 14 tokens and responses of 42 and 19. All other prompts go on with 3
    // tokens, "Include the keywords", and then branch twice: into 5 tokens with continuations of 16 and 16,
    // and into 2 tokens with continuations of 18 and 19. Two prompts have a single response, which extends
    // their segment.
    let lengths: Vec<_> = batch.tree.starts.windows(2).map(|w| w[1] - w[0]).collect();
    assert_eq!(lengths, [14, 42, 19, 3, 5, 16, 42, 19, 16 + 42, 2, 18, 42, 19, 19 + 19]);

    pack_into(&mut batch, &[&group], &options(LOGP), &LOSS).unwrap();
    assert_eq!((batch.tokens(), batch.tokens_unshared, batch.head_rows()), (337 - 8, 498 - 8, 244));
    assert_eq!(batch.comparisons.counts, [1, 2, 2]);
    // The last token of x predicts the first token of both its responses.
    let last = batch.head_runs.keys.iter().position(|&row| row == 13).unwrap();
    assert_eq!(batch.head_runs.offsets[last + 1] - batch.head_runs.offsets[last], 2);
    pack_into(&mut batch, &[&group], &options(PATH_LOGP), &LOSS).unwrap();
    assert_eq!((batch.tokens(), batch.head_rows()), (337 - 8, 498 - 8));
}

/// transformers reads the reward at the rightmost token that is not a pad token, or at the first token if all
/// are pad tokens.
#[test]
fn rewards_are_read_at_the_last_token_that_is_not_padding() {
    let group =
        group(vec![vec![1, 2, 7]], &[(0, vec![3, 7]), (0, vec![4, 7, 7]), (0, vec![7]), (0, vec![5, 6])], Vec::new());
    for share_prefixes in [true, false] {
        let rows = |pad| {
            let mut batch = Batch::default();
            let options = PackOptions { share_prefixes, scoring: Scoring::Reward, vocab: 8, pad, position_runs: false };
            pack_into(&mut batch, &[&group], &options, &LOSS).unwrap();
            batch
                .last_rows
                .iter()
                .map(|&row| (batch.ids[row as usize], batch.positions[row as usize]))
                .collect::<Vec<_>>()
        };
        assert_eq!(rows(None), [(7, 4), (7, 5), (7, 3), (6, 4)]);
        assert_eq!(rows(Some(0)), rows(None));
        assert_eq!(rows(Some(7)), [(3, 3), (4, 3), (2, 1), (6, 4)]);
    }
    assert_eq!(reward_position(&[7, 7], &[7], Some(7)), 0);
}
