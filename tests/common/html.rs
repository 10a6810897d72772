//! Checks of HTML text: tags, attributes, entities, numbers. The library's unit tests include this
//! file too.

/// Checks that every tag is closed in order, every attribute quoted and every `&` an entity;
/// returns the text.
pub fn well_formed(html: &str) -> String {
    let entity = regex::Regex::new(r"^&(amp|lt|gt|quot|#39);").unwrap();
    let tag = regex::Regex::new(r#"^<(/?)([a-z][a-z0-9]*)((?: [a-zA-Z][a-zA-Z0-9-]*="[^"<]*")*)(/?)>"#).unwrap();
    let (mut rest, mut open, mut text) = (html, Vec::new(), String::new());
    rest = rest.strip_prefix("<!DOCTYPE html>").unwrap_or(rest);
    while let Some(c) = rest.chars().next() {
        if c == '<' {
            let parts = tag.captures(rest).unwrap_or_else(|| panic!("not a tag: {}", &rest[..rest.len().min(80)]));
            let name = parts[2].to_owned();
            match (&parts[1], &parts[4]) {
                ("/", "") => assert_eq!(open.pop().as_deref(), Some(name.as_str()), "closed in the wrong order"),
                ("", "/") => {}
                ("", "") if name == "meta" => {}
                ("", "") => open.push(name),
                _ => panic!("{}", &parts[0]),
            }
            rest = &rest[parts[0].len()..];
            continue;
        }
        if c == '&' && open.last().is_none_or(|name| name != "style") {
            assert!(entity.is_match(rest), "unescaped &: {}", &rest[..rest.len().min(40)]);
        }
        assert!(c != '>' || open.last().is_some_and(|name| name == "style"), "unescaped >");
        text.push(c);
        rest = &rest[c.len_utf8()..];
    }
    assert!(open.is_empty(), "unclosed tags: {open:?}");
    text
}

/// Checks that the page contains no non-finite number and no negative zero.
pub fn has_no_broken_number(html: &str) {
    let broken = regex::Regex::new(r#"NaN|[ ">-]-?inf[ "<.]|-0(\.0+)?["< ]"#).unwrap();
    assert!(!broken.is_match(html), "{:?}", broken.find(html));
}
