//! Prefix tree of the prompts in the KV cache. A prefix that several prompts share has one set of cache rows
//! and runs once.
//!
//! Every prompt ends in a separate leaf with at least its last token, because the logits after that token
//! belong to this prompt only. Adding a prompt may split a node; both halves keep their rows.

use std::collections::BTreeMap;
use std::ops::Range;

/// Run of tokens that one or several prompts contain.
#[derive(Debug)]
struct Node {
    parent: Option<usize>,
    ids: Vec<u32>,
    /// Rows of the cache, one per token.
    rows: Range<usize>,
    /// Number of its tokens that have run through the model.
    done: usize,
    /// Number of prompts that contain these tokens.
    users: usize,
    /// Whether a prompt ends here.
    is_leaf: bool,
}

/// Prefix tree of the prompts that have entered ([`Prefixes::enter`]).
#[derive(Debug, Default)]
pub(super) struct Prefixes {
    nodes: BTreeMap<usize, Node>,
    next: usize,
}

/// Tokens of a node that one step runs.
#[derive(Debug, PartialEq)]
pub(super) struct Piece {
    pub node: usize,
    /// Number of tokens of the node that have run before.
    pub done: usize,
    pub tokens: usize,
    /// Rows of the cache up to the last token of the piece.
    pub path: Vec<Range<usize>>,
}

impl Prefixes {
    /// Returns the deepest node that a prompt shares, and the number of its tokens that are shared. All tokens
    /// of its ancestors are shared.
    fn find(&self, ids: &[u32]) -> Option<(usize, usize)> {
        let (mut found, mut parent, mut at) = (None, None, 0);
        loop {
            // The last token of a prompt is never shared: neither the last of `ids`, nor the last token of a
            // leaf.
            let rest = &ids[at..ids.len() - 1];
            let common = |node: &Node| {
                let ends = node.ids.len() - usize::from(node.is_leaf);
                node.ids[..ends].iter().zip(rest).take_while(|(a, b)| a == b).count()
            };
            let of_parent = self.nodes.iter().filter(|(_, node)| node.parent == parent);
            let Some((&id, len)) = of_parent.map(|(id, node)| (id, common(node))).find(|(_, len)| *len > 0) else {
                return found;
            };
            found = Some((id, len));
            if len < self.nodes[&id].ids.len() {
                return found;
            }
            (parent, at) = (Some(id), at + len);
        }
    }

    /// Number of tokens that a prompt shares with prompts that have entered.
    pub fn shared(&self, ids: &[u32]) -> usize {
        self.find(ids).map_or(0, |(node, len)| {
            let above = self.above(node).map(|above| self.nodes[&above].ids.len());
            len + above.sum::<usize>()
        })
    }

    /// Adds a prompt; `rows` are for its tokens that are not shared. Returns its leaf.
    pub fn enter(&mut self, ids: &[u32], rows: Range<usize>) -> usize {
        let shared = self.shared(ids);
        let parent = self.find(ids).map(|(node, len)| self.split(node, len));
        let leaf = self.add(Node { parent, ids: ids[shared..].to_vec(), rows, done: 0, users: 0, is_leaf: true });
        let path: Vec<usize> = std::iter::once(leaf).chain(self.above(leaf)).collect();
        for id in path {
            if let Some(node) = self.nodes.get_mut(&id) {
                node.users += 1;
            }
        }
        leaf
    }

    fn add(&mut self, node: Node) -> usize {
        self.nodes.insert(self.next, node);
        self.next += 1;
        self.next - 1
    }

    /// Moves the first `len` tokens of a node to a new parent node, and returns the index of that node. A node
    /// of `len` tokens is returned unchanged. The indices of all other nodes stay the same.
    fn split(&mut self, id: usize, len: usize) -> usize {
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.ids.len() > len) else { return id };
        let tail = node.ids.split_off(len);
        let head = Node {
            parent: node.parent,
            ids: std::mem::replace(&mut node.ids, tail),
            rows: node.rows.start..node.rows.start + len,
            done: node.done.min(len),
            users: node.users,
            is_leaf: false,
        };
        node.rows.start += len;
        node.done -= head.done;
        let head = self.add(head);
        if let Some(node) = self.nodes.get_mut(&id) {
            node.parent = Some(head);
        }
        head
    }

    /// Ancestors of a node, the nearest first.
    fn above(&self, id: usize) -> impl Iterator<Item = usize> {
        let parent = |id: &usize| self.nodes.get(id)?.parent;
        std::iter::successors(parent(&id), parent)
    }

    /// Cache rows of the prompt that ends in a leaf, in token order.
    pub fn path(&self, leaf: usize) -> Vec<Range<usize>> {
        let mut path: Vec<Range<usize>> =
            std::iter::once(leaf).chain(self.above(leaf)).map(|id| self.nodes[&id].rows.clone()).collect();
        path.reverse();
        path
    }

    /// Removes a prompt, and returns the rows that no other prompt uses.
    pub fn leave(&mut self, leaf: usize) -> Vec<Range<usize>> {
        let path: Vec<usize> = std::iter::once(leaf).chain(self.above(leaf)).collect();
        let mut free = Vec::new();
        for id in path {
            let Some(node) = self.nodes.get_mut(&id) else { continue };
            node.users -= 1;
            if node.users == 0 {
                free.push(node.rows.clone());
                self.nodes.remove(&id);
            }
        }
        free
    }

    /// True if all tokens of a node have run. Ancestors run first, so for a leaf the whole prompt has run.
    pub fn has_run(&self, leaf: usize) -> bool {
        self.nodes.get(&leaf).is_some_and(|node| node.done == node.ids.len())
    }

    /// Returns pieces of the nodes whose ancestors have run, with at most `most` tokens in total.
    pub fn pieces(&self, most: usize) -> Vec<Piece> {
        let (mut left, mut pieces) = (most, Vec::new());
        for (&id, node) in &self.nodes {
            let tokens = left.min(node.ids.len() - node.done);
            if tokens == 0 || !self.above(id).all(|above| self.has_run(above)) {
                continue;
            }
            let mut path = self.path(id);
            if let Some(last) = path.last_mut() {
                last.end = last.start + node.done + tokens;
            }
            pieces.push(Piece { node: id, done: node.done, tokens, path });
            left -= tokens;
        }
        pieces
    }

    /// Token ids of a piece.
    pub fn ids(&self, piece: &Piece) -> &[u32] {
        &self.nodes[&piece.node].ids[piece.done..piece.done + piece.tokens]
    }

    /// Marks the tokens of a piece as run.
    pub fn ran(&mut self, piece: &Piece) {
        if let Some(node) = self.nodes.get_mut(&piece.node) {
            node.done += piece.tokens;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_in_common_have_one_set_of_rows_and_run_once() {
        let mut tree = Prefixes::default();
        let first = tree.enter(&[1, 2, 3, 4], 0..4);
        assert_eq!(tree.shared(&[1, 2, 3, 4]), 3, "the last token is never shared");
        assert_eq!(tree.shared(&[1, 2, 9]), 2);
        assert_eq!(tree.shared(&[7]), 0);
        let pieces = tree.pieces(3);
        assert_eq!(pieces, [Piece { node: first, done: 0, tokens: 3, path: std::iter::once(0..3).collect() }]);
        tree.ran(&pieces[0]);
        // The second prompt splits the node of the first one after two tokens, which have run.
        let second = tree.enter(&[1, 2, 9, 9], 10..12);
        assert_eq!((tree.path(first), tree.path(second)), (vec![0..2, 2..4], vec![0..2, 10..12]));
        let pieces = tree.pieces(9);
        let tokens: Vec<&[u32]> = pieces.iter().map(|piece| tree.ids(piece)).collect();
        assert_eq!(tokens, [&[4][..], &[9, 9]]);
        assert_eq!(pieces[0].path, [0..2, 2..4]);
        pieces.iter().for_each(|piece| tree.ran(piece));
        assert!(tree.has_run(first) && tree.has_run(second));
        // A prompt does not share its last token with a longer prompt that starts with it.
        let third = tree.enter(&[1, 2, 9, 9, 5], 20..22);
        assert_eq!(tree.path(third), [0..2, 10..11, 20..22]);
        assert_eq!(tree.path(second), [0..2, 10..11, 11..12]);
        assert!(tree.leave(first).into_iter().eq(std::iter::once(2..4)));
        assert!(tree.leave(second).into_iter().eq(std::iter::once(11..12)));
        assert_eq!(tree.leave(third), [20..22, 10..11, 0..2]);
        assert!(tree.nodes.is_empty());
    }

    #[test]
    fn a_part_runs_after_the_parts_above_it() {
        let mut tree = Prefixes::default();
        let leaves = [tree.enter(&[1, 2, 3], 0..3), tree.enter(&[1, 2, 4], 3..4)];
        let pieces = tree.pieces(100);
        assert_eq!(pieces.iter().map(|piece| tree.ids(piece)).collect::<Vec<_>>(), [&[1, 2]]);
        pieces.iter().for_each(|piece| tree.ran(piece));
        let pieces = tree.pieces(100);
        assert_eq!(pieces.iter().map(|piece| piece.node).collect::<Vec<_>>(), leaves);
        pieces.iter().for_each(|piece| tree.ran(piece));
        assert!(tree.pieces(100).is_empty());
    }
}
