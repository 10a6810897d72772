//! Memory of the instruction checkers is a small multiple of the text's size, however many words the text
//! has.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use mapl::data::instructions::{Analysis, Request, Target, all};
use mapl::rng::Rng;
use serde_json::json;

thread_local! {
    /// Bytes that this thread holds, and the largest number of bytes that it has held.
    static HELD: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

struct Counting;

fn count(grown: usize, shrunk: usize) {
    // The counter no longer exists while its thread ends.
    let _ = HELD.try_with(|held| {
        let (now, most) = held.get();
        let now = (now + grown).saturating_sub(shrunk);
        held.set((now, most.max(now)));
    });
}

// SAFETY: every call goes to the system's allocator unchanged; the counter does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller upholds the contract of `GlobalAlloc::alloc`, which is also that of the system's
        // allocator.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: the caller guarantees that `alloc` returned `pointer` for `layout`, and `alloc` forwards to
        // the system's allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn checkers_need_a_small_multiple_of_the_text() {
    let kwargs = json!({
        "num_words": 3, "relation": "at least", "keyword": "zz", "keywords": ["zz"], "forbidden_words": ["zz"],
        "frequency": 2, "let_frequency": 2, "let_relation": "at least", "letter": "z", "num_sentences": 2,
        "num_paragraphs": 2, "nth_paragraph": 1, "first_word": "a", "num_placeholders": 2, "postscript_marker": "P.S.",
        "num_bullets": 2, "num_highlights": 2, "section_spliter": "Section", "num_sections": 2, "end_phrase": "x",
        "prompt_to_repeat": "x", "language": "en", "capital_frequency": 2, "capital_relation": "at least",
    });
    let kwargs = kwargs.as_object().unwrap();
    let check_all = |text: &str| {
        let (analysis, other) = (Analysis::new(text), Analysis::new("Another answer."));
        let targets =
            [(&analysis, true), (&other, false)].map(|(response, flag)| Target { response, flag: Some(flag) });
        for function in all() {
            function.check(kwargs, &analysis);
            function.draw(&Request { targets: &targets, prompt: &analysis, partner: None }, &mut Rng::keyed(1, &["t"]));
        }
    };
    // Patterns are compiled on first use, so this call compiles them before memory is measured.
    check_all("a b c. D");
    const BYTES: usize = 1 << 19;
    for text in ["a ".repeat(BYTES / 2), "the cat sat ".repeat(BYTES / 12), "A. ".repeat(BYTES / 3)] {
        let before = HELD.with(Cell::get).0;
        HELD.with(|held| held.set((before, before)));
        check_all(&text);
        let peak = HELD.with(Cell::get).1 - before;
        // The checkers hold the lower-case text and copies of the prompt. A list of words would need 8 times
        // the size of the text.
        assert!(peak < 4 * BYTES + (1 << 19), "{peak} bytes for {BYTES}: {:?}", &text[..20]);
    }
}
