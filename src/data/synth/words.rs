//! Vocabulary of the artificial language. Content words have at least four letters and none
//! contains another, so a checker that matches substrings finds exactly the written words. Openers
//! have at most three letters, so no keyword function picks one.

/// One subject of a request.
pub(super) struct Topic {
    /// Name in prompts; contains no content word.
    pub name: &'static str,
    /// Words of responses about the topic; no other topic has them.
    pub words: [&'static str; 12],
}

/// All topics, in a fixed order.
#[rustfmt::skip]
pub(super) const TOPICS: [Topic; 10] = [
    Topic { name: "the garden", words: [
        "rose", "tulip", "fern", "moss", "daisy", "hedge", "lawn", "seed", "soil", "bloom", "weed", "vine"] },
    Topic { name: "the kitchen", words: [
        "flour", "oven", "spoon", "bread", "onion", "sauce", "plate", "honey", "soup", "salt", "cake", "fork"] },
    Topic { name: "the harbour", words: [
        "anchor", "sail", "rope", "tide", "gull", "ferry", "crew", "deck", "wave", "boat", "cargo", "dock"] },
    Topic { name: "music", words: [
        "piano", "drum", "flute", "chord", "choir", "harp", "song", "tune", "opera", "band", "cello", "jazz"] },
    Topic { name: "the weather", words: [
        "rain", "cloud", "storm", "frost", "snow", "wind", "mist", "hail", "thaw", "gale", "gust", "flood"] },
    Topic { name: "school", words: [
        "chalk", "exam", "essay", "ruler", "pupil", "desk", "maths", "book", "quiz", "class", "grade", "page"] },
    Topic { name: "sport", words: [
        "goal", "team", "coach", "medal", "race", "tennis", "hockey", "squad", "trophy", "judo", "golf", "polo"] },
    Topic { name: "the farm", words: [
        "sheep", "barn", "wheat", "goat", "straw", "fence", "horse", "duck", "mule", "corn", "calf", "milk"] },
    Topic { name: "space", words: [
        "rocket", "planet", "comet", "orbit", "galaxy", "moon", "star", "probe", "lunar", "solar", "alien", "mars"] },
    Topic { name: "health", words: [
        "doctor", "nurse", "fever", "pulse", "cough", "pill", "clinic", "bone", "vein", "lung", "sleep", "diet"] },
];

/// First words of a prompt; the topic follows.
pub(super) const REQUESTS: [&str; 8] = [
    "Write a note about",
    "Tell us about",
    "Say something about",
    "Talk about",
    "Share a thought about",
    "Give a speech about",
    "Send a message about",
    "Write a line about",
];

/// Audience of a request; follows the topic after "for".
pub(super) const AUDIENCES: [&str; 16] = [
    "children",
    "visitors",
    "neighbours",
    "friends",
    "parents",
    "students",
    "tourists",
    "readers",
    "artists",
    "drivers",
    "bakers",
    "lawyers",
    "painters",
    "cousins",
    "writers",
    "pilots",
];

/// Day of a request; ends the prompt after "on".
pub(super) const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

/// First word of every sentence of a response; its capital letter marks the start of the sentence.
pub(super) const OPENERS: [&str; 6] = ["The", "Our", "His", "Her", "My", "One"];
