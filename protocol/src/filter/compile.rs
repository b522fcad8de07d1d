//! From a filter document to conditions, within limits, and its canonical text.

use serde_json::{Map, Value};

use super::{Comparison, Condition, InvalidFilter, Test};

const LEVELS_MAX: usize = 16;
const CONDITIONS_MAX: usize = 256;
const VALUES_MAX: usize = 1_024;

pub(super) fn document(document: &Value) -> Result<Condition, InvalidFilter> {
    Compiler::default().condition(document)
}

/// The document with sorted keys, whatever order the map keeps.
pub(super) fn canonical(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let mut sorted: Vec<_> = fields.iter().collect();
            sorted.sort_unstable_by_key(|(key, _)| key.as_str());
            let members: Vec<String> = sorted
                .into_iter()
                .map(|(key, value)| format!("{}:{}", Value::from(key.as_str()), canonical(value)))
                .collect();
            format!("{{{}}}", members.join(","))
        }
        Value::Array(items) => {
            format!("[{}]", items.iter().map(canonical).collect::<Vec<_>>().join(","))
        }
        scalar => scalar.to_string(),
    }
}

/// Compiles while counting against the limits and remembering the place for errors.
#[derive(Default)]
struct Compiler {
    place: Vec<String>,
    conditions: usize,
    values: usize,
}

impl Compiler {
    fn fail<T>(&self, problem: &'static str) -> Result<T, InvalidFilter> {
        let path = if self.place.is_empty() { "the top".to_owned() } else { self.place.join(".") };
        Err(InvalidFilter { path, problem })
    }

    fn at<T>(
        &mut self,
        place: &str,
        compile: impl FnOnce(&mut Self) -> Result<T, InvalidFilter>,
    ) -> Result<T, InvalidFilter> {
        if self.place.len() >= LEVELS_MAX {
            return self.fail("more than 16 levels");
        }
        self.place.push(place.to_owned());
        let compiled = compile(self)?;
        self.place.pop();
        Ok(compiled)
    }

    fn count(&mut self) -> Result<(), InvalidFilter> {
        self.conditions += 1;
        if self.conditions > CONDITIONS_MAX {
            self.fail("more than 256 conditions")
        } else {
            Ok(())
        }
    }

    fn condition(&mut self, document: &Value) -> Result<Condition, InvalidFilter> {
        let Value::Object(fields) = document else { return self.fail("expected an object") };
        let mut all = Vec::with_capacity(fields.len());
        for (key, value) in fields {
            all.push(self.at(key, |compiler| compiler.member(key, value))?);
        }
        Ok(Condition::All(all))
    }

    fn member(&mut self, key: &str, value: &Value) -> Result<Condition, InvalidFilter> {
        match key {
            "$and" => self.conditions_of(value).map(Condition::All),
            "$or" => self.conditions_of(value).map(Condition::Any),
            "$not" => Ok(Condition::Not(Box::new(self.condition(value)?))),
            operator if operator.starts_with('$') => self.fail("an unknown operator"),
            path => {
                let tests = self.tests(value)?;
                Ok(Condition::Field { path: path.split('.').map(Into::into).collect(), tests })
            }
        }
    }

    fn conditions_of(&mut self, value: &Value) -> Result<Vec<Condition>, InvalidFilter> {
        let documents = match value {
            Value::Array(documents) if !documents.is_empty() => documents,
            _ => return self.fail("expected a list that is not empty"),
        };
        documents
            .iter()
            .enumerate()
            .map(|(index, document)| {
                self.count()?;
                self.at(&index.to_string(), |compiler| compiler.condition(document))
            })
            .collect()
    }

    fn tests(&mut self, value: &Value) -> Result<Vec<Test>, InvalidFilter> {
        match value {
            Value::Object(operators) if operators.keys().any(|key| key.starts_with('$')) => {
                self.operators(operators)
            }
            plain => {
                self.count()?;
                Ok(vec![Test::Equal(plain.clone())])
            }
        }
    }

    fn operators(&mut self, operators: &Map<String, Value>) -> Result<Vec<Test>, InvalidFilter> {
        let mut tests = Vec::with_capacity(operators.len());
        for (operator, operand) in operators {
            self.count()?;
            tests.push(self.at(operator, |compiler| compiler.test(operator, operand))?);
        }
        Ok(tests)
    }

    fn test(&mut self, operator: &str, operand: &Value) -> Result<Test, InvalidFilter> {
        Ok(match operator {
            "$eq" => Test::Equal(operand.clone()),
            "$ne" => Test::Not(vec![Test::Equal(operand.clone())]),
            "$in" => Test::OneOf(self.list(operand)?),
            "$nin" => Test::Not(vec![Test::OneOf(self.list(operand)?)]),
            "$gt" => self.comparison(Comparison::Greater, operand)?,
            "$gte" => self.comparison(Comparison::GreaterOrEqual, operand)?,
            "$lt" => self.comparison(Comparison::Less, operand)?,
            "$lte" => self.comparison(Comparison::LessOrEqual, operand)?,
            "$exists" => match operand {
                Value::Bool(exists) => Test::Exists(*exists),
                _ => return self.fail("expected true or false"),
            },
            "$not" => Test::Not(self.tests(operand)?),
            _ => return self.fail("an unknown operator"),
        })
    }

    fn list(&mut self, operand: &Value) -> Result<Vec<Value>, InvalidFilter> {
        let Value::Array(values) = operand else { return self.fail("expected a list") };
        self.values += values.len();
        if self.values > VALUES_MAX {
            self.fail("more than 1,024 values")
        } else {
            Ok(values.clone())
        }
    }

    fn comparison(&self, comparison: Comparison, operand: &Value) -> Result<Test, InvalidFilter> {
        match operand {
            Value::Number(_) | Value::String(_) => Ok(Test::Compare(comparison, operand.clone())),
            _ => self.fail("expected a number or a string"),
        }
    }
}
