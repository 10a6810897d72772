//! Chat templates against Jinja 2: rendered text must equal `golden/templates/expected.json` byte
//! for byte.

use mapl::data::group::Message;
use mapl::data::template::ChatTemplate;
use serde_json::Value;

#[test]
fn every_template_renders_as_in_jinja() {
    let golden: Value = serde_json::from_str(include_str!("../golden/templates/expected.json")).unwrap();
    let tokens: Vec<(String, String)> = golden["tokens"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, token)| (name.clone(), token.as_str().unwrap().to_owned()))
        .collect();
    let cases = golden["cases"].as_array().unwrap();
    let mut wrong = Vec::new();
    for case in cases {
        let (template, conversation) = (case["template"].as_str().unwrap(), case["conversation"].as_str().unwrap());
        let source = golden["templates"][template].as_str().unwrap();
        let row = &golden["conversations"][conversation];
        let messages: Vec<Message> = serde_json::from_value(row["messages"].clone()).unwrap();
        let tools = Some(&row["tools"]).filter(|tools| !tools.is_null());
        let open = row["add_generation_prompt"].as_bool().unwrap();
        let text = ChatTemplate::compile(source, tokens.clone())
            .and_then(|template| template.render(&messages, open, tools, row["kwargs"].as_object()));
        if text.as_deref().ok() != case["expected"].as_str() {
            wrong.push(format!("{template} / {conversation}:\n  jinja {:?}\n  ours  {text:?}", case["expected"]));
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases differ\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    assert_eq!(cases.len(), 42);
    assert!(cases.iter().any(|case| case["expected"].is_null()), "no case expects a refusal");
}

/// Expressions that differ: minijinja has no tuples (they print as lists), its `map` gives a list,
/// and its `format` has no `%r`.
const DIFFERENT: [&str; 11] = [
    "[1]|map('string') is sequence",
    "'a=b=c'.partition('=')",
    "'a=b=c'.rpartition('=')",
    "'abc'.partition('=')",
    "'abc'.rpartition('=')",
    "{'a': 1}.items()|list",
    "'%r' % 'x'",
    "{'b': 1, 'a': 2}|dictsort",
    "(1, 'a')",
    "()",
    "(1,)",
];

/// An expression prints what Jinja 2 prints, or is an error in both.
#[test]
fn every_expression_prints_as_in_jinja() {
    let golden: Value = serde_json::from_str(include_str!("../golden/templates/expected.json")).unwrap();
    let user: Message = serde_json::from_value(golden["conversations"]["question"]["messages"][0].clone()).unwrap();
    let expressions = golden["expressions"].as_array().unwrap();
    let mut wrong = Vec::new();
    for case in expressions {
        let source = case[0].as_str().unwrap();
        let text = ChatTemplate::compile(&format!("{{{{ {source} }}}}"), Vec::new())
            .and_then(|template| template.render(std::slice::from_ref(&user), false, None, None));
        if (text.as_deref().ok() != case[1].as_str()) != DIFFERENT.contains(&source) {
            wrong.push(format!("{source}: jinja {:?}, ours {text:?}", case[1]));
        }
    }
    assert!(wrong.is_empty(), "{} of {} expressions differ\n{}", wrong.len(), expressions.len(), wrong.join("\n"));
    assert!(expressions.len() > 250);
}
