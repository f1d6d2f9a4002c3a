[
  line_length: 120,
  inputs: ["{mix,.formatter}.exs", "{lib,mix,test,examples,bench}/**/*.{ex,exs}"]
]
