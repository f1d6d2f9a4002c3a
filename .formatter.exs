[
  line_length: 120,
  inputs: ["{mix,.formatter}.exs", "{lib,mix,test,examples}/**/*.{ex,exs}"]
]
