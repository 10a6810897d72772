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
