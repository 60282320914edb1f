module tools

go 1.26.8

require github.com/argoproj/argo-workflows/v3 v3.6.0
